"""Speed and memory of an audio-language training step: stored audio features, recomputed activations.

    python -m benchmarks.train_alm --tune lora --batch 4

A random model of the quickstart's size, larger with `--encoder` and `--language-model`, or a trained one with
`--model FOLDER`. Each example is a clip of noise with a question and its answer. A step is what the trainer
does after decoding: waveforms (or stored patch tokens) to the device, log-mel, forward, backward, AdamW.
Every line comes from a process of its own. `step GiB` is what steps add to the memory of the built model: on
a GPU tensors, on a CPU the resident set. Ratios are to the first line. All lines begin with the same loss,
since they train the same model.
"""

import argparse
import json
import multiprocessing
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from almosaic.alm import AlmosaicForConditionalGeneration, AlmosaicProcessor, TuneSettings, apply_tuning
from almosaic.alm.projectors import projector_settings
from almosaic.data.collate import pad_waveforms
from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.features import AudioMosaicFeatureExtractor, frames_of
from almosaic.inference import load_model
from almosaic.training.tokenizer import train_tokenizer
from benchmarks.pretrain_step import DTYPES, memory_gib, seconds_each

QUESTION = "how many times does the dog bark in this recording, and what do you hear after it?"
ANSWER = "the dog barks twice, then a bell rings in the distance while rain falls."
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "small": {
        "model_type": "llama",
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
    },
    "smollm2_360m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "tie_word_embeddings": True,
    },
    "qwen3_0.6b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
TUNED: dict[str, dict[str, Any]] = {
    "projector": {},
    "lora": {"language_model": "lora", "lora_dropout": 0.0},
    "encoder": {"audio_tower": "full"},
    "everything": {"audio_tower": "full", "language_model": "full"},
}
WIDTHS = (8, 11, 11, 7, 9, 9, 7, 8)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model or run folder; a random model when left out")
    parser.add_argument("--encoder", default="tiny", choices=["tiny", "small", "base"])
    parser.add_argument("--language-model", default="tiny", choices=LANGUAGE_MODELS, help="its shape")
    parser.add_argument("--projector", default="mlp", choices=["mlp", "pool", "qformer", "segment_qformer"])
    parser.add_argument("--tune", default="lora", choices=TUNED)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each clip")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=DTYPES, help="bf16 on a GPU and fp32 on a CPU when left out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("train_alm.json"))
    options = parser.parse_args()
    options.precision = options.precision or ("bf16" if options.device.startswith("cuda") else "fp32")
    return options


def random_model(options: argparse.Namespace) -> tuple[Any, Any]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer([QUESTION, ANSWER] * 8, 400, Path(folder))
    fields = {"vocab_size": len(tokenizer)} | LANGUAGE_MODELS[options.language_model]
    config: PretrainedConfig = AutoConfig.for_model(**fields)
    projector = projector_settings({"name": options.projector})
    model = AlmosaicForConditionalGeneration.from_parts(
        AudioMosaicModel(AudioMosaicConfig.from_preset(options.encoder)),
        AutoModelForCausalLM.from_config(config),
        projector,
        tokenizer,
    )
    return model, AlmosaicProcessor(AudioMosaicFeatureExtractor(), tokenizer, queries=projector.queries)


def examples(processor: Any, batch: int, seconds: float) -> tuple[dict[str, Any], list[Any]]:
    """What the collator hands over, without audio, and the clips as waveforms."""
    rng = np.random.default_rng(0)
    clips = [(0.1 * rng.standard_normal(int(16_000 * seconds))).astype(np.float32) for _ in range(batch)]
    question = {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": QUESTION}]}
    talk = [question, {"role": "assistant", "content": ANSWER}]
    encoded = [processor.encode(talk, [frames_of(len(clip))]) for clip in clips]
    text = processor.pad(encoded, "right")
    counts = {"audio_windows": torch.tensor([row.windows[0] for row in encoded])}
    return {**text, **counts, "audio_clips": torch.ones(batch, dtype=torch.long)}, clips


def measure(options: argparse.Namespace, cached: bool, checkpointing: bool) -> dict[str, Any]:
    """One line of the table."""
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), DTYPES[options.precision]
    model, processor = load_model(options.model, device="cpu") if options.model else random_model(options)
    model.to(device)
    apply_tuning(model, TuneSettings.model_validate(TUNED[options.tune]))
    model.train()
    if checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions have another name for it
            model.gradient_checkpointing_enable()
    text, clips = examples(processor, options.batch, options.seconds)
    waveforms, lengths = pad_waveforms(clips)
    extractor = processor.feature_extractor
    stored = torch.empty(0)
    if cached:
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=options.precision == "bf16"):
            windows = extractor.featurize(waveforms.to(device), lengths.to(device))[:2]
            stored = model.get_audio_features(*windows).last_hidden_state.cpu()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    losses: list[float] = []

    def step() -> None:
        inputs = {name: value.to(device) for name, value in text.items()}
        if cached:
            inputs["audio_features"] = stored.to(device).float()
        else:
            windows = extractor.featurize(waveforms.to(device), lengths.to(device))
            inputs |= {"input_features": windows[0], "input_features_mask": windows[1]}
        with torch.autocast(device.type, dtype, enabled=options.precision == "bf16"):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    before = memory_gib(device, peak=False)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_each(step, options.steps, device)
    peak = memory_gib(device)
    return {
        "audio": "stored" if cached else "waveforms",
        "checkpointing": checkpointing,
        "parameters": model.num_parameters(),
        "trained_parameters": sum(weight.numel() for weight in trained),
        "tokens_per_example": text["input_ids"].shape[1],
        "first_loss": losses[0],
        "seconds_per_step": seconds,
        "examples_per_second": options.batch / seconds,
        "peak_memory_gib": peak,
        "step_memory_gib": peak - before,
    }


def lines_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Waveforms and stored tokens, with and without recomputation, each in a fresh process."""
    names = ["audio", "recomputes", "examples/s", "ratio", "peak GiB", "step GiB", "ratio", "loss"]
    print(" ".join(f"{name:>{width}}" for name, width in zip(names, WIDTHS, strict=True)))
    lines: list[dict[str, Any]] = []
    # A stored token is stale once its encoder is trained.
    sources = [False] if "audio_tower" in TUNED[options.tune] else [False, True]
    for cached in sources:
        for checkpointing in (False, True):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                line = process.submit(measure, options, cached, checkpointing).result()
            lines.append(line)
            first = lines[0]
            for name in ("examples_per_second", "step_memory_gib"):
                line[f"{name}_ratio"] = line[name] / first[name]
            cells = [
                line["audio"],
                "yes" if checkpointing else "no",
                f"{line['examples_per_second']:.2f}",
                f"{line['examples_per_second_ratio']:.2f}x",
                f"{line['peak_memory_gib']:.2f}",
                f"{line['step_memory_gib']:.3f}",
                f"{line['step_memory_gib_ratio']:.2f}x",
                f"{line['first_loss']:.4f}",
            ]
            print(" ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)), flush=True)
    return lines


def main() -> None:
    options = arguments()
    gpu = options.device.startswith("cuda")
    setting = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()
    }
    setting |= {
        "device": torch.cuda.get_device_name(options.device) if gpu else "cpu",
        "torch": torch.__version__,
    }
    model = (
        options.model or f"random {options.encoder} encoder, {options.projector}, {options.language_model}"
    )
    print(
        f"{model}; {options.tune} trained, batch {options.batch}, {options.seconds:g} s clips; "
        f"{setting['device']}, {options.threads} threads, {options.precision}, torch {setting['torch']}"
    )
    result = setting | {"lines": lines_of(options)}
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    main()
