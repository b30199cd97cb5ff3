"""Time and memory of a training step of every objective beside NT-Xent, at equal batch and at equal tokens.

    python -m benchmarks.objectives --preset tiny --batch 32
    python -m benchmarks.objectives --preset base --batch 128 --device cuda

Input is random and on the device, so that masks, forward, backward, the AdamW step and the teachers' step
count. Every line comes from a process of its own; all ratios are to NT-Xent of the same run. At equal tokens
the batch is such that encoder and teacher read as many tokens in a step as they do for NT-Xent; what
predictors and text encoders read comes on top, which is why the times differ. `step GiB` is what the step
adds to the memory of the idle process (on a CPU its resident set, on a GPU tensors). With `--threads 1` on a
CPU, seconds are those of the process: the wall time of a quiet machine.
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from almosaic.encoder import AudioMosaicConfig
from almosaic.masking import MaskSettings, PatchMask, draw_mask, kept_patches, score_count
from almosaic.objectives import OBJECTIVES, objective_settings
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from benchmarks.pretrain_step import DTYPES, memory_gib, seconds_each

RANDOM = [{"name": "random", "ratio": 0.75}]
FIRST = "contrastive"  # what the others are compared with
VIEWS: dict[str, list[dict[str, Any]]] = {
    FIRST: [{"name": "time", "ratio": 0.6}, {"name": "frequency", "ratio": 0.4}],
    "matpac": [{"name": "random", "ratio": 0.7}],
    "masked_autoencoder": RANDOM,
    "token_prediction": RANDOM,
    "position_prediction": RANDOM,
    "clap": [{"name": "random", "ratio": 0.5}],
}
# What stands beside the encoder: as in recipes/compare for `tiny`, the published defaults for `base`.
TINY, SMALL = {"width": 96, "depth": 2, "heads": 3}, {"width": 192, "depth": 4, "heads": 6}
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "matpac": {"predictor": TINY, "classification": {"hidden": 256, "bottleneck": 64, "classes": 512}},
        "masked_autoencoder": {"predictor": TINY},
        "token_prediction": {"predictor": TINY, "quantiser": {"codes": 1024}},
        "clap": {"text_encoder": {"width": 96, "layers": 2, "heads": 3}},
    },
    "small": {
        "matpac": {"predictor": SMALL, "classification": {"hidden": 1024, "classes": 1024}},
        "masked_autoencoder": {"predictor": SMALL},
        "token_prediction": {"predictor": SMALL, "quantiser": {"codes": 4096}},
    },
    "base": {},
}
HEADER = ["objective", "tokens", "batch", "s/step", "ratio", "step GiB", "ratio"]
WIDTHS = (20, 7, 6, 9, 7, 9, 7)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny", choices=PARTS)
    parser.add_argument("--objectives", nargs="+", choices=VIEWS, default=list(VIEWS), help="beside NT-Xent")
    parser.add_argument("--batch", type=int, default=32, help="clips")
    parser.add_argument("--window-frames", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=DTYPES, help="bf16 on a GPU and fp32 on a CPU when left out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("objectives.json"))
    options = parser.parse_args()
    options.precision = options.precision or ("bf16" if options.device.startswith("cuda") else "fp32")
    options.objectives = list(dict.fromkeys([FIRST, *options.objectives]))
    return options


def configured(options: argparse.Namespace, name: str) -> tuple[AudioMosaicConfig, list[MaskSettings]]:
    """The encoder with its objective, and a mask per view."""
    parts = {"name": name, **PARTS[options.preset].get(name, {})}
    objective = objective_settings(parts).model_dump()
    config = AudioMosaicConfig.from_preset(
        options.preset, window_frames=options.window_frames, objective=objective
    )
    return config, [TypeAdapter(MaskSettings).validate_python(mask) for mask in VIEWS[name]]


def tokens_per_clip(options: argparse.Namespace, name: str) -> int:
    """What encoder and teacher read of a clip."""
    config, masks = configured(options, name)
    objective = OBJECTIVES[type(objective_settings(config.objective))]
    return objective.encoder_tokens([kept_patches(mask, config.grid) for mask in masks], config.grid.patches)


def measure(options: argparse.Namespace, name: str, batch: int) -> dict[str, Any]:
    """One line of the table; no more than that it does not fit, where the GPU is too small."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, dtype = torch.device(options.device), DTYPES[options.precision]
    config, settings = configured(options, name)
    model = AudioMosaicForPreTraining(config).to(device).train()
    model.objective.measures = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    shape = (batch, config.window_frames, config.num_mel_bins)
    inputs: dict[str, Any] = {"views": [torch.randn(shape, device=device) for _ in settings]}
    if model.objective.needs_texts:
        inputs["texts"] = [f"recording number {number} of something" for number in range(batch)]

    def masks() -> list[PatchMask]:
        drawn = (torch.rand(batch, score_count(mask, config.grid), device=device) for mask in settings)
        return [draw_mask(mask, config.grid, own) for mask, own in zip(settings, drawn, strict=True)]

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=options.precision == "bf16"):
            loss = model(**inputs, masks=masks()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step(0.5)

    line: dict[str, Any] = {"objective": name, "batch": batch, "fits": True}
    before = memory_gib(device, peak=False)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        seconds = seconds_each(step, options.steps, device)
    except torch.OutOfMemoryError:
        return line | {"fits": False}
    peak = memory_gib(device)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return line | {
        "seconds_per_step": seconds,
        "peak_memory_gib": peak,
        "step_memory_gib": peak - before,
        "trained_parameters": count,
    }


def lines_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every objective with the same batch, then those that would read more or fewer tokens with another."""
    tokens = {name: tokens_per_clip(options, name) for name in options.objectives}
    equal = {name: max(2, round(options.batch * tokens[FIRST] / own)) for name, own in tokens.items()}
    points = [("batch", name, options.batch) for name in tokens]
    points += [("tokens", name, batch) for name, batch in equal.items()]
    print(" ".join(f"{name:>{width}}" for name, width in zip(HEADER, WIDTHS, strict=True)))
    lines: list[dict[str, Any]] = []
    for equality, name, batch in points:
        if not any(line["equal"] == equality for line in lines):
            print(f"equal {equality}")
        line = next((dict(old) for old in lines if (old["objective"], old["batch"]) == (name, batch)), None)
        if line is None:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                line = process.submit(measure, options, name, batch).result()
        line |= {"equal": equality, "encoder_tokens_per_clip": tokens[name]}
        first = line if name == FIRST else next(old for old in lines if old["objective"] == FIRST)
        if line["fits"] and first["fits"]:
            for field in ("seconds_per_step", "step_memory_gib"):
                line[f"{field}_ratio"] = line[field] / first[field]
        lines.append(line)
        print(shown(line), flush=True)
    return lines


def shown(line: dict[str, Any]) -> str:
    """A line of the table."""
    start = [line["objective"], str(line["encoder_tokens_per_clip"]), str(line["batch"])]
    if not line["fits"]:
        return (
            " ".join(f"{text:>{width}}" for text, width in zip(start, WIDTHS, strict=False)) + " does not fit"
        )
    ratios = [
        f"{line[key]:.2f}x" if (key := f"{field}_ratio") in line else "–"
        for field in ("seconds_per_step", "step_memory_gib")
    ]
    cells = [
        *start,
        f"{line['seconds_per_step']:.4f}",
        ratios[0],
        f"{line['step_memory_gib']:.3f}",
        ratios[1],
    ]
    return " ".join(f"{text:>{width}}" for text, width in zip(cells, WIDTHS, strict=True))


def main() -> None:
    """Measure, print the table and write the JSON."""
    options = arguments()
    gpu = options.device.startswith("cuda")
    setting = vars(options) | {
        "output": str(options.output),
        "device": torch.cuda.get_device_name(options.device) if gpu else "cpu",
        "torch": torch.__version__,
    }
    print(f"{options.preset} encoder, {setting['device']}, {options.precision}, torch {setting['torch']}")
    result = setting | {"lines": lines_of(options)}
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    main()
