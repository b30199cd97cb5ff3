"""What users ask for when they want a caption or a list of events; one of them is drawn for each row."""

CAPTION_PROMPTS = ("Describe the audio.", "What can be heard?", "Write a caption for this recording.")
TIMELINE_PROMPTS = ("List the sounds over time.", "What happens when?")

# Asked where a row names a task of SALMONN and no question; `{}` is where the row's own word `Q` goes.
TASK_PROMPTS = {
    "asr": "Write down what is said.",
    "asr_de": "Schreibe auf, was gesagt wird.",
    "audiocaption": "Describe the audio.",
    "audiocaption_v2": "Describe the audio.",
    "emotion_recognition": "Which emotion does the voice show? Answer with one word.",
    "gender_QA": "{}",
    "gender_recognition": "Does a man or a woman speak?",
    "inference_QA": "{}",
    "lyrics_recognition": "Write down what is sung.",
    "music_description": "Describe the music.",
    "phone_recognition": "Write down the phonemes of what is said.",
    "QA": "{}",
    "slot_filling": "Which {} does the speaker mention?",
    "speaker_verification": "Does the same person speak throughout? Answer yes or no.",
    "speech_query": "Answer the question that is spoken.",
    "time_QA": "From when to when is the word '{}' spoken?",
    "translation_ce": "Translate what is said into English.",
    "translation_ec": "Translate what is said into Chinese.",
    "translation_en2de": "Translate what is said into German.",
    "translation_en2ja": "Translate what is said into Japanese.",
}
