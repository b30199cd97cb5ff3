"""Tiny runs to export: one finished stage above a language model that its folder leaves out."""

import json
from pathlib import Path
from typing import Any

import torch
from helpers_tiny import answered, tiny_language_model, tiny_model, tiny_tokenizer, waveform

from almosaic.alm import TuneSettings, apply_tuning
from almosaic.alm.quantization import load_language_model

LORA = TuneSettings(language_model="lora", lora_rank=4)


def tiny_run(
    place: Path,
    tune: TuneSettings = LORA,
    projector: str = "mlp",
    language_model: Any = None,
    dtype: torch.dtype = torch.float32,
    quantize: Any = None,
) -> tuple[Path, Any, Any]:
    """A run `place/run` of the stages lm and instruct, the trained model, and a batch to compare logits on.

    `language_model` is a fresh one to use in place of a Llama, or the folder of one that is there already;
    `quantize` is how the run loads it.
    """
    size = len(tiny_tokenizer(place / "scratch"))
    folder = place / "run"
    base = language_model
    if not isinstance(base, Path):
        base = folder / "stages" / "lm" / "model"
        (language_model or tiny_language_model(size)).to(dtype).save_pretrained(base)
    words = load_language_model(base, quantize, device="cpu")
    model, processor = tiny_model(place, projector, language_model=words)
    apply_tuning(model, tune)
    torch.manual_seed(1)
    with torch.no_grad():  # as training would: the second factor of LoRA starts at zero
        for name, parameter in model.named_parameters():
            if "lora_B" in name or not name.startswith("language_model"):
                parameter += 0.1 * torch.randn_like(parameter)
    stage = folder / "stages" / "instruct"
    model.save_pretrained(stage / "model")
    processor.save_pretrained(stage / "model")
    note = {"order": 3, "kind": "alm", "done": True}
    (stage / "stage.json").write_text(json.dumps(note))
    clips = [[waveform(1.2)], [waveform(0.3), waveform(0.5)]]
    batch = processor([answered(), answered("rain", clips=2)], clips, add_generation_prompt=False)
    return folder, model.eval(), batch


def logits(model: Any, batch: Any) -> torch.Tensor:
    """Next-word logits [B, L, V] without gradients."""
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits
    return found
