"""Answers per second in batches and one by one, what an audio token costs, what remembering clips saves.

Run from a checkout: `python -m benchmarks.generate` (a random model of the quickstart's size), or with
`--model FOLDER`. Clips of noise, questions of different lengths, greedy answers.
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
from almosaic.token_memory import TokenMemory
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
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[0, 1, 2, 4, 8], help="of clips, for the cost"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each cost; the fastest counts")
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


def noise(seconds: float, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    return (0.1 * rng.standard_normal(int(16_000 * seconds))).astype(np.float32), 16_000


def asked(index: int, *clips: tuple[np.ndarray, int]) -> dict[str, Any]:
    content = [{"type": "audio"}] * len(clips)
    content += [{"type": "text", "text": QUESTIONS[index % len(QUESTIONS)]}]
    return {"id": index, "messages": [{"role": "user", "content": content}], "audios": list(clips)}


def conversations(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [asked(index, noise(rng.uniform(2, 10), rng)) for index in range(count)]


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


def token_cost(model: Any, processor: Any, settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds for the first word and for a whole answer, against the audio tokens of the prompt."""
    rng = np.random.default_rng(1)
    seconds_of_window = model.config.audio_config.window_frames / 100
    lines: list[dict[str, Any]] = []
    for windows in settings.windows:
        # Half a window less: the last one is padded.
        clip = noise((windows - 0.5) * seconds_of_window, rng) if windows else None
        row = asked(0, *([clip] if clip else []))
        frames = frames_of(len(clip[0])) if clip else 0
        memory, nothing = TokenMemory(model, processor), TokenMemory(model, processor, limit=0)
        lines.append(
            {
                "audio_tokens": audio_token_cost(frames, model.config, processor.tokenizer) if clip else 0,
                "first_word_new": fastest(model, processor, row, 1, nothing, settings.repeats),
                "first_word_heard": fastest(model, processor, row, 1, memory, settings.repeats),
                "answer_heard": fastest(
                    model, processor, row, settings.max_new_tokens, memory, settings.repeats
                ),
            }
        )
    return lines


def fastest(
    model: Any, processor: Any, row: dict[str, Any], words: int, memory: TokenMemory, repeats: int
) -> float:
    """Seconds of the fastest of some repeats, after one that is not counted."""
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        list(generate(model, processor, [row], batch_size=1, max_new_tokens=words, memory=memory))
        found.append(time.perf_counter() - start)
    return min(found[1:])


def slopes(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds for one audio token more: the slope of a line through all prompts."""
    tokens = [line["audio_tokens"] for line in lines]
    names = [name for name in lines[0] if name != "audio_tokens"]
    return {name: float(np.polyfit(tokens, [line[name] for line in lines], 1)[0]) for name in names}


def repeated_clips(
    model: Any, processor: Any, settings: argparse.Namespace, clips: int = 4
) -> dict[str, float]:
    """Answers per second about few clips, one by one, with and without remembering them."""
    rng = np.random.default_rng(2)
    heard = [noise(10.0, rng) for _ in range(clips)]
    rows = [asked(index, heard[index % clips]) for index in range(settings.answers)]
    found = {}
    for name, limit in (("without_memory", 0), ("with_memory", 64)):
        memory = TokenMemory(model, processor, limit=limit)
        options = {"batch_size": 1, "max_new_tokens": settings.max_new_tokens, "memory": memory}
        list(generate(model, processor, rows[:1], **options))
        memory.clear()
        start = time.perf_counter()
        list(generate(model, processor, rows, **options))
        found[name] = settings.answers / (time.perf_counter() - start)
    return found


def show(report: dict[str, Any]) -> None:
    lines, answers = report["results"], report["answers"]
    print(f"{'batch':>6} {'answers/s':>10} {'speed-up':>9} {'same answers':>13}")
    for line in lines:
        ratio = line["answers_per_second"] / lines[0]["answers_per_second"]
        same = f"{line['equal']}/{answers}"
        print(f"{line['batch_size']:>6} {line['answers_per_second']:>10.1f} {ratio:>8.1f}x {same:>13}")
    print(f"\n{'audio tokens':>12} {'first word, new':>16} {'heard before':>13} {'answers/s':>10}")
    for line in report["audio_tokens"]:
        new, heard = 1000 * line["first_word_new"], 1000 * line["first_word_heard"]
        print(
            f"{line['audio_tokens']:>12} {new:>13.1f} ms {heard:>10.1f} ms {1 / line['answer_heard']:>10.1f}"
        )
    cost = {name: 1e6 * value for name, value in report["seconds_per_audio_token"].items()}
    print(
        f"one audio token more: {cost['first_word_new']:.0f} us to the first word about a new clip, "
        f"{cost['first_word_heard']:.0f} us about one heard, {cost['answer_heard']:.0f} us to an answer"
    )
    few = report["repeated_clips"]
    print(
        f"the same four clips, one by one: {few['without_memory']:.1f} answers/s, "
        f"remembered {few['with_memory']:.1f} answers/s"
    )


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
    costs = token_cost(model, processor, settings)
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
        "audio_tokens": costs,
        "seconds_per_audio_token": slopes(costs),
        "repeated_clips": repeated_clips(model, processor, settings),
    }
    settings.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(report)
    print(f"written to {settings.output}")


if __name__ == "__main__":
    main()
