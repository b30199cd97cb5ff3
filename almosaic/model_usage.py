"""How to load and use an exported model, as Python that runs where it is pasted."""

import re
from pathlib import Path
from typing import Any

from almosaic.alm import AlmosaicForConditionalGeneration
from almosaic.encoder import AudioMosaicForAudioClassification

FOLDER = "path/to/this/folder"
CLIP = "clip.wav"
LANGUAGE_MODEL = "path/to/the/language/model"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")

_ASK = f'''from almosaic import generate, load_model

model, processor = load_model("{FOLDER}")
question = [{{"type": "audio"}}, {{"type": "text", "text": "What do you hear?"}}]
row = {{"messages": [{{"role": "user", "content": question}}], "audios": ["{CLIP}"]}}
print(next(generate(model, processor, [row]))["prediction"])'''

_PIPELINE = f'''import almosaic.alm  # makes the library know this kind of model
from transformers import pipeline

answer = pipeline("any-to-any", model="{FOLDER}")
question = [{{"type": "audio", "audio": "{CLIP}"}}, {{"type": "text", "text": "What do you hear?"}}]
print(answer([{{"role": "user", "content": question}}], return_full_text=False)[0]["generated_text"])'''

_PEFT = f'''from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from almosaic.alm import AlmosaicForConditionalGeneration
from almosaic.alm.projectors import projector_settings
from almosaic.encoder import AudioMosaicModel

config = AutoConfig.from_pretrained("{FOLDER}")
processor = AutoProcessor.from_pretrained("{FOLDER}")
base = AlmosaicForConditionalGeneration.from_parts(
    AudioMosaicModel(config.audio_config),
    AutoModelForCausalLM.from_pretrained("{{base}}", dtype="auto"),
    projector_settings(config.projector),
    processor.tokenizer,
    layer=config.layer,
    chat_template=processor.chat_template,
)
model = PeftModel.from_pretrained(base, "{FOLDER}").eval()
print(sum(p.numel() for p in model.parameters()))'''

_CLASSIFY = f'''import almosaic.encoder  # makes the library know this kind of model
from almosaic import load_audio
from transformers import pipeline

classify = pipeline("audio-classification", model="{FOLDER}")
print(classify(load_audio("{CLIP}")))  # mono at 16 kHz, any length'''

_EMBED = f'''from almosaic import embed, load_model

model, front_end = load_model("{FOLDER}")
for name, vector in embed(model, ["{CLIP}"], feature_extractor=front_end):
    print(name, vector.shape)'''


def usage(model: Any, adapter: bool) -> str:
    """Markdown with one or two Python blocks; `path/to/this/folder` and `clip.wav` stand for the reader's."""
    if isinstance(model, AudioMosaicForAudioClassification):
        return _python(_CLASSIFY)
    if not isinstance(model, AlmosaicForConditionalGeneration):
        return _python(_EMBED)
    if not adapter:
        return f"{_python(_ASK)}\n\nOr through the library's own pipeline:\n\n{_python(_PIPELINE)}"
    source = model.config.language_model_source
    assert source is not None
    base = source["path"] if is_hub_name(source["path"]) else LANGUAGE_MODEL
    named = f"`{base}`" if base != LANGUAGE_MODEL else "the one of the training run"
    own = (
        f"The language model is {named}, with weights of sha256 `{source['sha256']}`. Where it has moved "
        "since, `load_model(..., language_model=FOLDER)` finds it; another one is refused."
    )
    peft = "peft alone reads the folder too, on a model that is built the same way:"
    own += ' The library\'s pipeline takes both: `pipeline("any-to-any", model=model, processor=processor)`.'
    return f"{_python(_ASK)}\n\n{own}\n\n{peft}\n\n{_python(_PEFT.replace('{base}', base))}"


def is_hub_name(name: str) -> bool:
    """Whether a model's name is one of the hub and no path of this machine."""
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).is_dir()


def _python(code: str) -> str:
    return f"```python\n{code}\n```"
