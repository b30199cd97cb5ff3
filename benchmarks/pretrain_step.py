"""Speed and memory of a contrastive training step against its batch, in one piece and with gradient caching.

    python -m benchmarks.pretrain_step --preset tiny --batch 8 16 32 64 --cache-chunk 0 8

Input is random and on the device, so that only forward, backward and the AdamW step count. Every line comes
from a process of its own, beside the matrix-product ceiling that it measured. `model` is the arithmetic of
the step, without what is computed twice, as a share of that ceiling. `step GiB` is what the step adds to the
memory of the idle process (on a CPU its resident set, on a GPU tensors). `monitors` is the time of effective
rank and intrinsic dimension, which training measures only for the lines that it logs. With `--threads 1` on a
CPU, seconds are those of the process: the wall time of a quiet machine.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from almosaic.encoder import AudioMosaicConfig
from almosaic.masking import PatchMask, frequency_mask, time_mask
from almosaic.objectives.contrastive import ContrastiveSettings
from almosaic.objectives.monitors import representation_metrics
from almosaic.objectives.pretraining import AudioMosaicForPreTraining

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WIDTHS = (6, 6, 8, 8, 6, 9, 9, 9)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny", choices=["tiny", "small", "base"])
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16, 32, 64], help="clips, two views each")
    parser.add_argument(
        "--cache-chunk", type=int, nargs="+", default=[0, 8], help="clips encoded at a time, 0 = all"
    )
    parser.add_argument("--window-frames", type=int, default=1024)
    parser.add_argument("--time-ratio", type=float, default=0.6)
    parser.add_argument("--frequency-ratio", type=float, default=0.4)
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=DTYPES, help="bf16 on a GPU and fp32 on a CPU when left out")
    parser.add_argument("--compile", action="store_true", help="the encoder, through torch.compile")
    parser.add_argument("--checkpointing", action="store_true", help="recompute every block, too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("pretrain_step.json"))
    options = parser.parse_args()
    options.precision = options.precision or ("bf16" if options.device.startswith("cuda") else "fp32")
    return options


def seconds_each(run: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Mean time of `run` after a call that warms up."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    run()
    wait(device)
    start = clock()
    for _ in range(repeats):
        run()
    wait(device)
    return (clock() - start) / repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large square matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds_each(lambda: left @ right, 10 if device.type == "cuda" else 3, device) / 1e12


def step_flops(config: AudioMosaicConfig, batch: int, kept: list[int]) -> int:
    """Forward plus backward (twice the forward) of the encoder and heads, counted from shapes."""
    objective = ContrastiveSettings.model_validate(config.objective)
    hidden, size = objective.projection_hidden, objective.projection_size
    head = 2 * (config.hidden_size * hidden + hidden * size)
    return 3 * batch * sum(config.forward_flops(patches) + head for patches in kept)


def build(options: argparse.Namespace, chunk: int) -> AudioMosaicForPreTraining:
    objective = ContrastiveSettings(cache_chunk=chunk or None).model_dump()
    config = AudioMosaicConfig.from_preset(
        options.preset, window_frames=options.window_frames, drop_path_rate=0.1, objective=objective
    )
    model = AudioMosaicForPreTraining(config).to(options.device).train()
    model.objective.measures = False
    if options.checkpointing:
        model.gradient_checkpointing_enable()
    if options.compile:
        model.encoder.compile()
    return model


def measure(options: argparse.Namespace, batch: int, chunk: int) -> dict[str, Any]:
    """One line of the table; of its figures only the peak where the batch does not fit the GPU."""
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), DTYPES[options.precision]
    ceiling = matmul_ceiling(device, dtype)
    model = build(options, chunk)
    config = model.config
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    views = [torch.randn(batch, config.window_frames, config.num_mel_bins, device=device) for _ in range(2)]

    def masks() -> list[PatchMask]:
        return [
            time_mask(config.grid, batch, ratio=options.time_ratio, device=device),
            frequency_mask(config.grid, batch, ratio=options.frequency_ratio, device=device),
        ]

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=options.precision == "bf16"):
            loss = model(views, masks()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    line: dict[str, Any] = {"batch": batch, "cache_chunk": chunk, "fits": True}
    before = memory_gib(device, peak=False)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        seconds = seconds_each(step, options.steps, device)
    except torch.OutOfMemoryError:
        return line | {"fits": False, "peak_memory_gib": memory_gib(device)}
    peak = memory_gib(device)
    kept = [mask.ids_keep.shape[1] for mask in masks()]
    features = torch.randn(2 * batch, config.hidden_size, device=device)
    achieved = step_flops(config, batch, kept) / seconds / 1e12
    return line | {
        "visible_patches": kept,
        "seconds_per_step": seconds,
        "clips_per_second": batch / seconds,
        "visible_tokens_per_second": batch * sum(count + 1 for count in kept) / seconds,
        "tflops": achieved,
        "matmul_ceiling_tflops": ceiling,
        "share_of_ceiling": achieved / ceiling,
        "peak_memory_gib": peak,
        "step_memory_gib": peak - before,
        "monitors_seconds": seconds_each(lambda: representation_metrics(features, 32), 3, device),
    }


def memory_gib(device: torch.device, peak: bool = True) -> float:
    """On a GPU what tensors take, on a CPU the resident set of the process; now, or at most so far."""
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
        return used / 2**30
    statm = Path("/proc/self/statm")
    if not peak and statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def lines_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every batch with every chunk that is smaller than it, each in a fresh process."""
    points = [(batch, chunk) for batch in options.batch for chunk in options.cache_chunk if chunk < batch]
    lines = []
    names = ["batch", "chunk", "s/step", "clips/s", "model", "peak GiB", "step GiB", "monitors"]
    print(" ".join(f"{name:>{width}}" for name, width in zip(names, WIDTHS, strict=True)))
    for batch, chunk in points:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            line = process.submit(measure, options, batch, chunk).result()
        lines.append(line)
        shown = f"{batch:>6} {chunk or 'all':>6} "
        if line["fits"]:
            shown += f"{line['seconds_per_step']:>8.3f} {line['clips_per_second']:>8.1f} "
            shown += f"{line['share_of_ceiling']:>6.0%} {line['peak_memory_gib']:>9.2f} "
            shown += f"{line['step_memory_gib']:>9.3f} {1000 * line['monitors_seconds']:>6.1f} ms"
        else:
            shown += f"does not fit ({line['peak_memory_gib']:.1f} GiB taken)"
        print(shown, flush=True)
    return lines


def main() -> None:
    options = arguments()
    gpu = options.device.startswith("cuda")
    setting = {name: value for name, value in vars(options).items() if name not in ("batch", "cache_chunk")}
    setting |= {
        "output": str(options.output),
        "device": torch.cuda.get_device_name(options.device) if gpu else "cpu",
        "torch": torch.__version__,
    }
    print(f"{options.preset} encoder, {setting['device']}, {options.precision}, torch {setting['torch']}")
    result = setting | {"lines": lines_of(options)}
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    main()
