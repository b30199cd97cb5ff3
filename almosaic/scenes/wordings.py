"""How each template is asked: four wordings for training, two that only evaluation uses.

`{x}` and `{y}` are noun phrases, `{a}` to `{d}` the names that are accepted as answers. The held-out wordings
are made of words of the others, so that a small language model fails on them for want of grammar, not of
vocabulary.
"""

from almosaic.scenes.scene import Template

WORDINGS: dict[Template, tuple[str, str, str, str]] = {
    "presence": (
        "Is the sound of {x} present in the audio?",
        "Can you hear {x}?",
        "Does this recording contain {x}?",
        "Do you hear the sound of {x}?",
    ),
    "first": (
        "Which sound comes first, {a} or {b}?",
        "Which of the two is heard first: {a} or {b}?",
        "What do you hear first, {a} or {b}?",
        "Which comes earlier in the audio, {a} or {b}?",
    ),
    "before": (
        "Is the sound of {x} heard before the sound of {y}?",
        "Does {x} come before {y}?",
        "Do you hear {x} earlier than {y}?",
        "Does this recording have {x} first and {y} after that?",
    ),
    "next": (
        "What is heard right after {x}?",
        "Which sound follows {x}?",
        "What comes next after {x}?",
        "Which sound do you hear right after the sound of {x}?",
    ),
    "count": (
        "How many times does the sound of {x} occur?",
        "How often do you hear {x}?",
        "How many times is {x} heard in the audio?",
        "How often does this recording contain {x}?",
    ),
    "distinct": (
        "How many different sounds are there?",
        "How many different sounds do you hear?",
        "Count the different sounds: how many are heard in the audio?",
        "How many kinds of sound does this recording contain?",
    ),
    "louder": (
        "Which is louder, {a} or {b}?",
        "Which of the two sounds is louder: {a} or {b}?",
        "Of {a} and {b}, which is louder in the audio?",
        "What is louder in this recording, {a} or {b}?",
    ),
    "longer": (
        "Which lasts longer, {a} or {b}?",
        "Which of the two sounds lasts longer: {a} or {b}?",
        "Of {a} and {b}, which is longer in the audio?",
        "What is heard for longer in this recording, {a} or {b}?",
    ),
    "overlap": (
        "Do {x} and {y} sound at the same time?",
        "Are {x} and {y} heard at the same time?",
        "Do you hear {x} and {y} together?",
        "Does this recording have {x} together with {y}?",
    ),
    "half": (
        "Is {x} in the first or the second half?",
        "In which half do you hear {x}, first or second?",
        "Is the sound of {x} heard in the first or in the second half of the audio?",
        "Which half of this recording contains {x}, the first or the second?",
    ),
    "choice": (
        "Which of these sounds is in the audio: {a}, {b}, {c} or {d}?",
        "Which sound do you hear: {a}, {b}, {c} or {d}?",
        "What is heard in this recording: {a}, {b}, {c} or {d}?",
        "Which one of {a}, {b}, {c} and {d} can you hear?",
    ),
}

HELDOUT_WORDINGS: dict[Template, tuple[str, str]] = {
    "presence": (
        "Does the audio contain the sound of {x}?",
        "Can you hear the sound of {x} in this recording?",
    ),
    "first": ("Which of the two comes first in the audio, {a} or {b}?", "What is heard earlier: {a} or {b}?"),
    "before": (
        "Do you hear {x} before {y} in this recording?",
        "Does the sound of {x} come earlier than {y}?",
    ),
    "next": ("Which sound comes right after {x}?", "What do you hear next after the sound of {x}?"),
    "count": ("How often does the sound of {x} occur in the audio?", "How many times do you hear {x}?"),
    "distinct": ("How many kinds of sound do you hear?", "How many different sounds does the audio contain?"),
    "louder": ("Which sound is louder in the audio, {a} or {b}?", "Of {a} and {b}, what is louder?"),
    "longer": ("Which sound is longer in the audio, {a} or {b}?", "Of {a} and {b}, what lasts longer?"),
    "overlap": (
        "Do you hear {x} and {y} at the same time?",
        "Are {x} and {y} heard together in this recording?",
    ),
    "half": (
        "In which half of the audio is {x} heard, first or second?",
        "Do you hear {x} in the first or the second half?",
    ),
    "choice": (
        "What do you hear: {a}, {b}, {c} or {d}?",
        "Which of {a}, {b}, {c} and {d} is in this recording?",
    ),
}
