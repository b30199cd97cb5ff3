"""Two augmented views and their log-mel: batched against clip by clip, per CPU core and per GPU.

    pip install "almosaic[benchmarks]"
    python -m benchmarks.front_end --clips 32 --json front_end.json

Both chains apply the seven effects of the published pretraining with the same ranges and probabilities:
polarity, time stretch, Gaussian SNR, gain, high-pass, band-stop, pitch shift. The clip-by-clip chain is that
of audiomentations. They are timed alone, then as a whole front end: after roll and gain, before the log-mel.
There, torchaudio's filter bank serves clip by clip where it can be imported, else ours on one clip at a time.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from almosaic.data.augment import (
    AugmentStep,
    BandStop,
    Draws,
    Gain,
    GaussianSnr,
    HighPass,
    PitchShift,
    Polarity,
    RollGain,
    TimeStretch,
    augment_waveforms,
)
from almosaic.features import SAMPLING_RATE, log_mel_fbank

EFFECTS: list[AugmentStep] = [
    Polarity(),
    TimeStretch(),
    GaussianSnr(),
    Gain(),
    HighPass(),
    BandStop(),
    PitchShift(),
]
VIEWS = 2
Array = NDArray[np.float32]
Timed = tuple[
    str, Callable[[int], None], Callable[[], float], int
]  # what, how, by which clock, of how many clips


def batched_effects(waveforms: torch.Tensor, turn: int) -> None:
    lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
    for view in range(VIEWS):
        draws = Draws((turn, view), range(len(waveforms)), waveforms.device)
        augment_waveforms(waveforms, lengths, EFFECTS, draws)


def batched_front_end(waveforms: torch.Tensor, turn: int) -> None:
    lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
    for view in range(VIEWS):
        draws = Draws((turn, view), range(len(waveforms)), waveforms.device)
        log_mel_fbank(augment_waveforms(waveforms, lengths, [RollGain(), *EFFECTS], draws), lengths)


def audiomentations_chain() -> Callable[[Array], Array]:
    try:
        import audiomentations as am  # type: ignore[import-not-found]
    except ImportError as missing:
        raise SystemExit(f'{missing}; install it with: pip install "almosaic[benchmarks]"') from None
    compose = am.Compose(
        [
            am.PolarityInversion(p=0.5),
            am.TimeStretch(min_rate=0.7, max_rate=1.3, p=0.7),
            am.AddGaussianSNR(p=0.5),
            am.Gain(p=0.3),
            am.HighPassFilter(p=0.3),
            am.BandStopFilter(p=0.5),
            am.PitchShift(p=0.6),
        ]
    )
    return lambda waveform: compose(waveform, sample_rate=SAMPLING_RATE)


def one_clip_fbank() -> tuple[Callable[[torch.Tensor], Any], str]:
    try:
        from torchaudio.compliance import kaldi
    except (ImportError, OSError):  # OSError: built for another torch
        return lambda waveform: log_mel_fbank(waveform[None]), "our filter bank"
    options = {"htk_compat": True, "window_type": "hanning", "num_mel_bins": 128, "dither": 0.0}
    return lambda waveform: kaldi.fbank(
        (waveform - waveform.mean())[None], **options
    ), "torchaudio's filter bank"


def chains(waveforms: torch.Tensor, gpu_clips: int) -> dict[str, list[Timed]]:
    """Return per part of the front end: one clip by clip on a core, then those that are set against it."""
    rng = np.random.default_rng(0)
    chain = audiomentations_chain()
    fbank, bank = one_clip_fbank()

    def effects_one_by_one(_: int) -> None:
        for waveform in waveforms.numpy():
            for _ in range(VIEWS):
                chain(waveform)

    def front_end_one_by_one(_: int) -> None:
        for waveform in waveforms.numpy():
            for _ in range(VIEWS):
                rolled = np.roll(waveform, rng.integers(len(waveform))) * np.float32(rng.beta(10, 10) + 0.5)
                fbank(torch.from_numpy(chain(rolled)))

    # CPU seconds of this process: with one thread they are the wall time of a quiet machine.
    cpu, clips = time.process_time, len(waveforms)
    parts: dict[str, list[Timed]] = {
        "seven effects": [
            ("audiomentations, one core", effects_one_by_one, cpu, clips),
            ("batched, one core", lambda turn: batched_effects(waveforms, turn), cpu, clips),
        ],
        "roll and gain, seven effects, log-mel": [
            (f"audiomentations, {bank}, one core", front_end_one_by_one, cpu, clips),
            ("batched, one core", lambda turn: batched_front_end(waveforms, turn), cpu, clips),
        ],
    }
    if torch.cuda.is_available():
        many = waveforms.repeat(-(-gpu_clips // clips), 1)[:gpu_clips].cuda()
        name = f"batched, {torch.cuda.get_device_name()}, {gpu_clips} clips at once"
        for timed, run in zip(parts.values(), (batched_effects, batched_front_end), strict=True):
            timed.append((name, on_gpu(run, many), time.perf_counter, gpu_clips))
    return parts


def on_gpu(run: Callable[[torch.Tensor, int], None], waveforms: torch.Tensor) -> Callable[[int], None]:
    def synchronised(turn: int) -> None:
        run(waveforms, turn)
        torch.cuda.synchronize()

    return synchronised


def seconds_of(run: Callable[[int], None], turn: int, clock: Callable[[], float]) -> float:
    start = clock()
    run(turn)
    return clock() - start


def measure(clips: int, seconds: float, repeats: int, gpu_clips: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    rows = []
    for part, timed in chains(torch.randn(clips, round(seconds * SAMPLING_RATE)) * 0.1, gpu_clips).items():
        # The chains take turns, so that a busy moment falls on all of them; the first turn warms up.
        turns = [[seconds_of(run, turn, clock) for _, run, clock, _ in timed] for turn in range(repeats + 1)]
        spent = np.median(np.array(turns[1:]), axis=0)
        rates = [count / used for (_, _, _, count), used in zip(timed, spent, strict=True)]
        rows += [
            {
                "part": part,
                "chain": what,
                "clips_per_second": round(float(rate), 1),
                "ratio_to_one_core": round(float(rate / rates[0]), 2),
            }
            for (what, _, _, _), rate in zip(timed, rates, strict=True)
        ]
    return {
        "clips": clips,
        "seconds": seconds,
        "views": VIEWS,
        "repeats": repeats,
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of two augmented views and their log-mel.")
    parser.add_argument("--clips", type=int, default=32, help="clips in a batch on the CPU")
    parser.add_argument("--gpu-clips", type=int, default=512, help="clips in a batch on the GPU")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes over the batch")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    result = measure(arguments.clips, arguments.seconds, arguments.repeats, arguments.gpu_clips)
    print(f"{VIEWS} views of clips of {result['seconds']:g} s, torch {result['torch']}")
    cores = f"x {result['cores']} cores"
    print(f"{'part':<38} {'chain':<58} {'clips/s':>9} {'x a core':>9} {cores:>11}")
    for row in result["rows"]:
        ratio = row["ratio_to_one_core"]
        print(
            f"{row['part']:<38} {row['chain']:<58} {row['clips_per_second']:>9.1f} {ratio:>8.2f}x"
            f" {ratio / result['cores']:>10.2f}x"
        )
    print("All cores: as many times one core, as if clip by clip scaled perfectly.")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
