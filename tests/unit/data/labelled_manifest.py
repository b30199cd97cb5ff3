"""A small manifest of labelled tones on disk, for the tests of labelled data and of fine-tuning."""

import json
import wave

import numpy as np

LABELS = ("high", "low", "middle")
HERTZ = {"low": 220.0, "middle": 900.0, "high": 3500.0}


def write_tones(folder, rows, seconds=0.5):
    """`rows` of (labels, further columns) as WAV files and manifest.jsonl; the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (labels, columns) in enumerate(rows):
        rng = np.random.default_rng(number)
        time = np.arange(round(seconds * 16_000)) / 16_000
        sound = sum(np.sin(2 * np.pi * HERTZ[label] * rng.uniform(0.9, 1.1) * time) for label in labels)
        sound = 0.2 * sound + 0.02 * rng.standard_normal(len(time))
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, len(time), "NONE", ""))
            file.writeframes((sound * 32767).clip(-32767, 32767).astype("<i2").tobytes())
        row = {"id": str(number), "audio": f"{number}.wav", "labels": list(labels), **columns}
        lines.append(json.dumps(row))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "manifest.jsonl"


def folds(per_label=4, count=3):
    """`per_label` rows of each label in each of `count` folds."""
    return [
        (
            [label],
            {
                "fold": str(fold),
                "split": "train" if fold < count else "test",
                "take": f"{label} {place // 2}",
            },
        )
        for fold in range(1, count + 1)
        for label in LABELS
        for place in range(per_label)
    ]
