"""What users ask for when they want a caption or a list of events; one of them is drawn for each row."""

CAPTION_PROMPTS = ("Describe the audio.", "What can be heard?", "Write a caption for this recording.")
TIMELINE_PROMPTS = ("List the sounds over time.", "What happens when?")
