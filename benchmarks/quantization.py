"""What fewer bits cost a language model: bytes of its weights, and how far its logits move.

    python -m benchmarks.quantization --shape small
    python -m benchmarks.quantization --language-model runs/quickstart/stages/lm/model

A random model of a known shape, or a trained one by its folder. Every line is the same weights in another
form, asked about the same random words; distances are to float32.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from almosaic.alm.quantization import SCHEMES, load_language_model, weight_bytes
from benchmarks.train_alm import LANGUAGE_MODELS

FORMS = {"float32": (None, torch.float32), "bfloat16": (None, torch.bfloat16)} | {
    scheme: (scheme, torch.bfloat16) for scheme in SCHEMES
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=LANGUAGE_MODELS, default="small", help="of a random model")
    parser.add_argument("--language-model", type=Path, help="a folder; in place of a random model")
    parser.add_argument("--words", type=int, default=256, help="random words that it reads, in rows of 64")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("quantization.json"))
    return parser.parse_args()


@torch.no_grad()
def measure(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    expected = torch.zeros(0)
    for form, (scheme, dtype) in FORMS.items():
        model = load_language_model(folder, scheme, dtype, options.device).to(options.device).eval()
        torch.manual_seed(0)
        words = torch.randint(model.config.vocab_size, (max(1, options.words // 64), 64))
        logits = model(words.to(options.device)).logits.float().cpu()
        expected = expected if lines else logits
        moved = (logits - expected).norm() / expected.norm()
        same = (logits.argmax(-1) == expected.argmax(-1)).float().mean()
        line = {"form": form, "bytes": weight_bytes(model), "moved": float(moved), "same_word": float(same)}
        lines.append(line)
    return lines


def main() -> None:
    """Measure every form, print the table and write the JSON."""
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.language_model
        if folder is None:
            folder = Path(temporary)
            torch.manual_seed(0)
            fields = {"vocab_size": 8192} | LANGUAGE_MODELS[options.shape]
            AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).save_pretrained(folder)
        lines = measure(folder, options)
    print(f"{'weights':>10} {'MB':>9} {'ratio':>7} {'logits move':>12} {'same word':>10}")
    for line in lines:
        ratio = line["bytes"] / lines[0]["bytes"]
        figures = (
            f"{line['bytes'] / 1e6:>9.1f} {ratio:>6.2f}x {line['moved']:>11.1%} {line['same_word']:>9.0%}"
        )
        print(f"{line['form']:>10} {figures}")
    about = {"language_model": str(options.language_model or options.shape), "device": options.device}
    options.output.write_text(json.dumps({**about, "results": lines}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
