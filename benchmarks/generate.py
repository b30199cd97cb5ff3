"""Answers per second, batched against one by one, and whether both say the same.

Run from a checkout: `python -m benchmarks.generate` (a random model of the quickstart's size), or with
`--model FOLDER`. Clips of 2 to 10 s of noise, questions of different lengths, greedy answers.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from almosaic.alm import AlmosaicForConditionalGeneration, AlmosaicProcessor, audio_token_cost
from almosaic.alm.projectors import MLPProjectorSettings
from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.features import AudioMosaicFeatureExtractor, frames_of
from almosaic.inference import generate, load_model
from almosaic.training.tokenizer import train_tokenizer

QUESTIONS = (
    "is there rain?",
    "which sound comes first, the bell or the dog?",
    "how many times does the dog bark in this recording, and what do you hear after it?",
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model or run folder; a random model when left out")
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("generate.json"))
    return parser.parse_args()


def random_model(device: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(QUESTIONS * 8, 400, Path(folder))
    language_model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.2,  # wide enough that greedy choices are clear
        )
    )
    encoder = AudioMosaicModel(AudioMosaicConfig.from_preset("tiny"))
    parts = encoder, language_model, MLPProjectorSettings(), tokenizer
    model = AlmosaicForConditionalGeneration.from_parts(*parts).to(device).eval()
    return model, AlmosaicProcessor(AudioMosaicFeatureExtractor(), tokenizer)


def conversations(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        clip = (0.1 * rng.standard_normal(int(16_000 * rng.uniform(2, 10)))).astype(np.float32)
        content = [{"type": "audio"}, {"type": "text", "text": QUESTIONS[index % len(QUESTIONS)]}]
        rows.append(
            {"id": index, "messages": [{"role": "user", "content": content}], "audios": [(clip, 16_000)]}
        )
    return rows


def measure(
    model: Any, processor: Any, rows: list[dict[str, Any]], settings: argparse.Namespace
) -> list[dict]:
    """One line per batch size; the answers of the first are what the others are compared with."""
    lines: list[dict[str, Any]] = []
    expected: list[Any] = []
    for size in settings.batch_sizes:
        common = {"batch_size": size, "max_new_tokens": settings.max_new_tokens}
        list(generate(model, processor, rows[:size], **common))
        start = time.perf_counter()
        found = [row["prediction"] for row in generate(model, processor, rows, **common)]
        seconds = time.perf_counter() - start
        expected = expected or found
        equal = sum(one == other for one, other in zip(found, expected, strict=True))
        lines.append({"batch_size": size, "answers_per_second": len(rows) / seconds, "equal": equal})
    return lines


def main() -> None:
    settings = arguments()
    loaded = (
        load_model(settings.model, device=settings.device)
        if settings.model
        else random_model(settings.device)
    )
    model, processor = loaded
    rows = conversations(settings.answers)
    lines = measure(model, processor, rows, settings)
    clip = frames_of(len(rows[0]["audios"][0][0]))
    report = {
        "model": str(settings.model or "random, quickstart size"),
        "parameters": model.num_parameters(),
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "answers": settings.answers,
        "max_new_tokens": settings.max_new_tokens,
        "tokens_of_a_clip": audio_token_cost(clip, model.config, processor.tokenizer),
        "results": lines,
    }
    settings.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{'batch':>6} {'answers/s':>10} {'speed-up':>9} {'same answers':>13}")
    for line in lines:
        ratio = line["answers_per_second"] / lines[0]["answers_per_second"]
        same = f"{line['equal']}/{settings.answers}"
        print(f"{line['batch_size']:>6} {line['answers_per_second']:>10.1f} {ratio:>8.1f}x {same:>13}")
    print(f"written to {settings.output}")


if __name__ == "__main__":
    main()
