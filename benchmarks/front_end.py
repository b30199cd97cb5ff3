"""Two augmented views and their log-mel: batched against clip by clip, per CPU core and per GPU.

    python -m benchmarks.front_end --clips 32 --json front_end.json

Both chains apply roll and gain, polarity, Gaussian SNR, gain, high-pass and band-stop with the same ranges
and probabilities. The clip-by-clip chain uses audiomentations where it is installed, else plain numpy and
scipy, and torchaudio's filter bank where it can be imported, else ours on one clip at a time.
"""

import argparse
import json
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
    Polarity,
    RollGain,
    augment_waveforms,
)
from almosaic.features import SAMPLING_RATE, log_mel_fbank

STEPS: list[AugmentStep] = [RollGain(), Polarity(), GaussianSnr(), Gain(), HighPass(), BandStop()]
VIEWS = 2
Array = NDArray[np.float32]


def batched(waveforms: torch.Tensor, device: str, epoch: int) -> None:
    waveforms = waveforms.to(device)
    lengths = torch.full((len(waveforms),), waveforms.shape[1], device=device)
    for view in range(VIEWS):
        draws = Draws((epoch, view), range(len(waveforms)), device)
        log_mel_fbank(augment_waveforms(waveforms, lengths, STEPS, draws), lengths)


def audiomentations_chain() -> Callable[[Array], Array]:
    import audiomentations as am  # type: ignore[import-not-found]

    compose = am.Compose(
        [
            am.PolarityInversion(p=0.5),
            am.AddGaussianSNR(p=0.5),
            am.Gain(p=0.3),
            am.HighPassFilter(p=0.3),
            am.BandStopFilter(p=0.5),
        ]
    )
    return lambda waveform: compose(waveform, sample_rate=SAMPLING_RATE)


def mel_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(700 * np.expm1(rng.uniform(np.log1p(low / 700), np.log1p(high / 700))))


def numpy_chain(rng: np.random.Generator) -> Callable[[Array], Array]:
    from scipy.signal import butter, sosfilt, sosfilt_zi

    def butterworth(waveform: Array, kind: str, corners: Any) -> Array:
        sections = butter(rng.integers(2, 5), corners, btype=kind, fs=SAMPLING_RATE, output="sos")
        filtered, _ = sosfilt(sections, waveform, zi=sosfilt_zi(sections) * waveform[0])
        return np.asarray(filtered, dtype=np.float32)

    def chain(waveform: Array) -> Array:
        if rng.random() < 0.5:
            waveform = -waveform
        if rng.random() < 0.5:
            scale = np.sqrt(np.mean(waveform**2)) * 10 ** (-rng.uniform(5, 40) / 20)
            waveform = waveform + np.float32(scale) * rng.standard_normal(len(waveform), dtype=np.float32)
        if rng.random() < 0.3:
            waveform = waveform * np.float32(10 ** (rng.uniform(-12, 12) / 20))
        if rng.random() < 0.3:
            waveform = butterworth(waveform, "highpass", mel_uniform(rng, 20, 2400))
        if rng.random() < 0.5:
            centre, fraction = mel_uniform(rng, 200, 4000), rng.uniform(0.5, 1.99)
            upper = min(centre * (1 + fraction / 2), 0.9999 * SAMPLING_RATE / 2)
            waveform = butterworth(waveform, "bandstop", [centre * (1 - fraction / 2), upper])
        return waveform

    return chain


def one_clip_fbank() -> tuple[Callable[[torch.Tensor], Any], str]:
    try:
        from torchaudio.compliance import kaldi
    except (ImportError, OSError):  # OSError: built for another torch
        return lambda waveform: log_mel_fbank(waveform[None]), "our filter bank"
    options = {"htk_compat": True, "window_type": "hanning", "num_mel_bins": 128, "dither": 0.0}
    return lambda waveform: kaldi.fbank(
        (waveform - waveform.mean())[None], **options
    ), "torchaudio's filter bank"


def clip_by_clip() -> tuple[Callable[[torch.Tensor], None], str]:
    rng = np.random.default_rng(0)
    try:
        chain, effects = audiomentations_chain(), "audiomentations"
    except ImportError:
        chain, effects = numpy_chain(rng), "numpy and scipy"
    fbank, bank = one_clip_fbank()

    def run(waveforms: torch.Tensor) -> None:
        for waveform in waveforms.numpy():
            for _ in range(VIEWS):
                rolled = np.roll(waveform, rng.integers(len(waveform))) * np.float32(rng.beta(10, 10) + 0.5)
                fbank(torch.from_numpy(chain(rolled)))

    return run, f"{effects}, {bank}"


def seconds_of(run: Callable[[int], None], repeat: int, clock: Callable[[], float]) -> float:
    start = clock()
    run(repeat)
    return clock() - start


def measure(clips: int, seconds: float, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    waveforms = torch.randn(clips, round(seconds * SAMPLING_RATE)) * 0.1
    one_by_one, chain = clip_by_clip()
    # CPU seconds of this process: with one thread they are the wall time of a quiet machine.
    chains: dict[str, tuple[Callable[[int], None], Callable[[], float]]] = {
        f"clip by clip, one core ({chain})": (lambda _: one_by_one(waveforms), time.process_time),
        "batched, one core": (lambda repeat: batched(waveforms, "cpu", repeat), time.process_time),
    }
    if torch.cuda.is_available():

        def on_gpu(repeat: int) -> None:
            batched(waveforms, "cuda", repeat)
            torch.cuda.synchronize()

        chains[f"batched, {torch.cuda.get_device_name()}"] = (on_gpu, time.perf_counter)
    # The chains take turns, so that a busy moment falls on all of them; the first turn warms up.
    turns = [[seconds_of(run, turn, clock) for run, clock in chains.values()] for turn in range(repeats + 1)]
    rates = clips / np.median(np.array(turns[1:]), axis=0)
    return {
        "clips": clips,
        "seconds": seconds,
        "views": VIEWS,
        "repeats": repeats,
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "rows": [
            {
                "what": what,
                "clips_per_second": round(float(rate), 1),
                "ratio": round(float(rate / rates[0]), 2),
            }
            for what, rate in zip(chains, rates, strict=True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of two augmented views and their log-mel.")
    parser.add_argument("--clips", type=int, default=32, help="clips in a batch")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes over the batch")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    result = measure(arguments.clips, arguments.seconds, arguments.repeats)
    print(f"{VIEWS} views of {result['clips']} clips of {result['seconds']:g} s, torch {result['torch']}")
    print(f"{'chain':<72} {'clips/s':>9} {'ratio':>7}")
    for row in result["rows"]:
        print(f"{row['what']:<72} {row['clips_per_second']:>9.1f} {row['ratio']:>6.2f}x")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
