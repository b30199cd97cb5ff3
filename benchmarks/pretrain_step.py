"""Speed and memory of one contrastive training step, beside the matrix-product ceiling of the same machine.

Run from a checkout: `python -m benchmarks.pretrain_step --preset tiny --batch 32`. Input is random and on the
device, so that only forward, backward and the AdamW step are timed.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from almosaic.encoder import AudioMosaicConfig
from almosaic.masking import PatchMask, frequency_mask, time_mask
from almosaic.objectives.contrastive import ContrastiveSettings
from almosaic.objectives.pretraining import AudioMosaicForPreTraining

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny", choices=["tiny", "small", "base"])
    parser.add_argument("--batch", type=int, default=32, help="clips per step, two views each")
    parser.add_argument("--window-frames", type=int, default=1024)
    parser.add_argument("--time-ratio", type=float, default=0.6)
    parser.add_argument("--frequency-ratio", type=float, default=0.4)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two that are not")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=DTYPES, help="bf16 on a GPU and fp32 on a CPU when left out")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--checkpointing", action="store_true", help="recompute the blocks in the backward pass"
    )
    parser.add_argument("--output", type=Path, default=Path("pretrain_step.json"))
    return parser.parse_args()


def seconds_each(run: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Mean wall time of `run` after two calls that warm up."""
    for _ in range(2):
        run()
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    wait(device)
    return (time.perf_counter() - start) / repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large square matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds_each(lambda: left @ right, 10 if device.type == "cuda" else 4, device) / 1e12


def step_flops(config: AudioMosaicConfig, batch: int, kept: list[int]) -> int:
    """Forward plus backward (twice the forward) of the encoder and heads, counted from shapes."""
    objective = ContrastiveSettings.model_validate(config.objective)
    hidden, size = objective.projection_hidden, objective.projection_size
    head = 2 * (config.hidden_size * hidden + hidden * size)
    return 3 * batch * sum(config.forward_flops(patches) + head for patches in kept)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    precision = options.precision or ("bf16" if device.type == "cuda" else "fp32")
    objective = ContrastiveSettings().model_dump()
    config = AudioMosaicConfig.from_preset(
        options.preset, window_frames=options.window_frames, objective=objective
    )
    model = AudioMosaicForPreTraining(config).to(device).train()
    if options.checkpointing:
        model.gradient_checkpointing_enable()
    if options.compile:
        model.encoder.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    views = [torch.randn(options.batch, config.window_frames, 128, device=device) for _ in range(2)]

    def masks() -> list[PatchMask]:
        return [
            time_mask(config.grid, options.batch, ratio=options.time_ratio, device=device),
            frequency_mask(config.grid, options.batch, ratio=options.frequency_ratio, device=device),
        ]

    def step() -> None:
        with torch.autocast(device.type, DTYPES[precision], enabled=precision == "bf16"):
            loss = model(views, masks()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ceiling = matmul_ceiling(device, DTYPES[precision])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_each(step, options.steps, device)
    kept = [mask.ids_keep.shape[1] for mask in masks()]
    achieved = step_flops(config, options.batch, kept) / seconds / 1e12
    return {
        "preset": options.preset,
        "batch": options.batch,
        "window_frames": config.window_frames,
        "visible_patches": kept,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": precision,
        "compile": options.compile,
        "checkpointing": options.checkpointing,
        "torch": torch.__version__,
        "seconds_per_step": seconds,
        "clips_per_second": options.batch / seconds,
        "visible_tokens_per_second": options.batch * sum(count + 1 for count in kept) / seconds,
        "tflops": achieved,
        "matmul_ceiling_tflops": ceiling,
        "share_of_ceiling": achieved / ceiling,
        "peak_memory_gib": peak_memory_gib(device),
    }


def peak_memory_gib(device: torch.device) -> float:
    """On a GPU what tensors took at most, on a CPU the largest resident set of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    options = arguments()
    found = measure(options)
    for name, value in found.items():
        print(f"{name:>26}  {f'{value:.4g}' if isinstance(value, float) else value}")
    options.output.write_text(json.dumps(found, indent=2) + "\n")
    print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    main()
