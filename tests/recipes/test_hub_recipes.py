"""Recipes around hub language models, through the real command, on tiny random models of their families."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers_tiny import tiny_encoder, tiny_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from almosaic.alm.alpaca import ALPACA_SHORT
from almosaic.alm.shipped_templates import SHIPPED
from almosaic.cli import main
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.loading import load_model
from almosaic.recipe import load_recipe

UNTAGGED = (
    "{% for m in messages %}OPENING<|im_start|>{{ m.role }}\n"
    "THOUGHT{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nEMPTY{% endif %}"
)
EMPTY = "<think>\n\n</think>\n\n"
FAMILIES = {
    "qwen3": UNTAGGED.replace("OPENING", "")
    .replace("THOUGHT", "{% if m.role == 'assistant' and loop.last %}" + EMPTY + "{% endif %}")
    .replace("EMPTY", "{% if enable_thinking is defined and not enable_thinking %}" + EMPTY + "{% endif %}"),
    "smollm2": UNTAGGED.replace(
        "OPENING",
        "{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}",
    )
    .replace("THOUGHT", "")
    .replace("EMPTY", ""),
    "llama": None,
}
OPTIM = ["batch_size=2", "accumulation=1", "steps=2", "epochs=null", "workers=0", "log_steps=1", "warmup=0"]
EVAL = {
    "question_answering": (
        "{templates: [presence], headline: [presence], pairs_per_template: 1, max_new_tokens: 2}"
    ),
    "captioning": "{scenes: 1, majority_scenes: 2, max_new_tokens: 2}",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated clips under the names that the recipes read, and an encoder for windows of 10.24 s."""
    folder = tmp_path_factory.mktemp("data")
    clips = []
    for clip in range(4):
        (folder / "clips").mkdir(exist_ok=True)
        wave = 0.3 * np.sin(2 * np.pi * 200 * (clip + 1) * np.arange(16_000 + 4_000 * clip) / 16_000)
        soundfile.write(folder / "clips" / f"{clip}.wav", wave, 16_000)
        clips.append(f"clips/{clip}.wav")
    for name in ("clotho", "audiocaps"):
        rows = [
            {"id": clip, "audio": f"../{clip}", "split": split, "captions": ["a tone", "a low hum"]}
            for clip, split in zip(clips, ["train", "train", "train", "test"], strict=True)
        ]
        write(folder / name / "manifest.jsonl", "\n".join(map(json.dumps, rows)))
    asked = [{"role": "user", "content": "<audio>is it a tone"}, {"role": "assistant", "content": "yes"}]
    rows = [{"messages": asked, "audios": [f"../{clip}"]} for clip in clips]
    write(folder / "clotho_aqa" / "train.jsonl", "\n".join(map(json.dumps, rows)))
    notes = {"input": "", "dataset": "generated", "task": "cla", "output": "a tone"}
    answers = [notes | {"instruction": "what is it", "audio_id": f"../{clip}"} for clip in clips]
    for name in ("openaqa_classification", "openaqa_closed_ended", "openaqa"):
        write(folder / name / "openaqa.jsonl", "\n".join(map(json.dumps, answers)))
    tiny_encoder(window_frames=1024, final_norm="layernorm").save_pretrained(folder / "encoder")
    AudioMosaicFeatureExtractor(window_frames=1024).save_pretrained(folder / "encoder")
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def language_model(folder: Path, family: str) -> Path:
    """A random model of two layers with the tokenizer and the untagged template of its family."""
    tokenizer = tiny_tokenizer(folder, pad_token=family != "llama")
    if FAMILIES[family] is not None:
        tokenizer.chat_template = FAMILIES[family]
        tokenizer.save_pretrained(folder)
    sizes = {
        "vocab_size": 340, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "initializer_range": 0.2,
    }  # fmt: skip
    config = Qwen3Config(head_dim=16, **sizes) if family == "qwen3" else LlamaConfig(**sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def train(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`train(recipe, family)` runs a recipe small, with every stage that it has, and returns its folder."""
    monkeypatch.setenv("DATA", str(data))
    monkeypatch.setenv("ENCODER", str(data / "encoder"))

    def once(name: str, family: str, *overrides: str) -> Path:
        small = [f"output={tmp_path / 'run'}", "sounds={name: synthetic, clips_per_kind: 3}"]
        small += ["scenes={duration_seconds: 5.0, templates: [presence, first]}"]
        for stage in load_recipe(name).stages:
            if stage.task == "alm":
                small += [f"stages.{stage.id}.optim.{change}" for change in OPTIM]
                composed = [number for number, one in enumerate(stage.data) if one.name == "scenes"]
                small += [f"stages.{stage.id}.data.{number}.scenes=4" for number in composed]
            else:
                small += [f"stages.{stage.id}.{key}={value}" for key, value in EVAL.items()]
        base = language_model(tmp_path / "lm", family)
        first = load_recipe(name).stages[0].id
        small += [f"stages.{first}.from.language_model.name={base}"]
        assert main(["train", name, *small, *overrides]) == 0
        return tmp_path / "run"

    return once


def config_of(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "stages" / stage / "model" / "config.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "family", "quantization"),
    [("qwen3_0.6b", "qwen3", None), ("smollm2_360m", "smollm2", None), ("qlora_8b", "qwen3", "nf4")],
)
def test_projector_adapters_encoder_and_deaf_controls(
    train: Any, recipe: str, family: str, quantization: str | None
) -> None:
    run = train(f"alm/{recipe}", family)
    stored = {stage: load_file(run / "stages" / stage / "model" / "model.safetensors") for stage in STAGES}
    assert not any(key.startswith("language_model.") for key in stored["align"])
    assert any(".lora_" in key for key in stored["instruct"])
    tower = "audio_tower.blocks.0.attn.qkv.weight"
    assert (stored["align"][tower] == stored["instruct"][tower]).all()
    assert (stored["unfrozen"][tower] != stored["instruct"][tower]).any()
    assert {config_of(run, stage).get("language_model_quantization") for stage in STAGES} == {quantization}
    _, processor = load_model(run / "stages" / "unfrozen" / "model", device="cpu")
    assert processor.chat_template == SHIPPED[family]
    judged = json.loads((run / "results.json").read_text())
    assert set(judged["question_answering"]) == {"unfrozen", "encoder frozen", "projector alone"}
    kept = (run / "stages" / "eval" / "questions-unfrozen.jsonl").read_text().splitlines()
    assert {"audio", "silence", "shuffled", "question_only"} <= {json.loads(row)["condition"] for row in kept}


STAGES = ("align", "instruct", "unfrozen")
LTU = ("proj_cla", "all_cla", "all_closed", "all_mix")


@pytest.mark.slow
def test_the_four_stages_of_ltu(train: Any, data: Path) -> None:
    published = [f"stages.{stage}.train_on_prompt=true" for stage in LTU]
    run = train("alm/ltu_openaqa", "llama", *published)
    stored = {stage: load_file(run / "stages" / stage / "model" / "model.safetensors") for stage in LTU}
    before = load_file(data / "encoder" / "model.safetensors")
    tower = {key: stored["proj_cla"][f"audio_tower.{key}"] for key in before}
    changed = {key.rsplit(".", 1)[0] for key, value in tower.items() if (value != before[key]).any()}
    assert changed == {"norm_pre", "norm"} and not any(".lora_" in key for key in stored["proj_cla"])
    adapters = {key.split(".")[-4] for key in stored["all_mix"] if ".lora_" in key}
    assert adapters == {"q_proj", "v_proj"}
    for earlier, later in pairwise(LTU[1:]):
        assert stored[earlier].keys() == stored[later].keys()
        assert all(
            (stored[earlier][key] != stored[later][key]).any() for key in stored[later] if "proj.lora" in key
        )
    _, processor = load_model(run / "stages" / "all_mix" / "model", device="cpu")
    assert processor.chat_template == ALPACA_SHORT and processor.tokenizer.pad_token_id == 0
    assert config_of(run, "all_mix")["projector"] == {"name": "pool", "queries": 32, "layout": "released"}


def test_ltu_says_what_was_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Epochs, rates, batch, warm-up, decay and trained parts of the four stages, as the facts have them."""
    for name in ("DATA", "ENCODER"):
        monkeypatch.setenv(name, str(tmp_path))
    stages = load_recipe("alm/ltu_openaqa").stages[:4]
    optims = [stage.optim for stage in stages]
    assert [stage.id for stage in stages] == list(LTU)
    assert [optim.epochs for optim in optims] == [2, 2, 1, 1]
    assert [optim.learning_rate for optim in optims] == [1e-3, 1e-4, 1e-4, 1e-4]
    for stage, optim in zip(stages, optims, strict=True):
        assert (optim.batch_size, optim.warmup, optim.schedule) == (256, 100, "linear")
        assert (optim.weight_decay, optim.max_grad_norm, optim.betas) == (0.0, 1.0, (0.9, 0.999))
        assert stage.group_by_length and not stage.train_on_prompt and stage.tune.projector == "full"
    assert [stage.tune.audio_tower for stage in stages] == ["norms", "full", "full", "full"]
    assert [stage.tune.language_model for stage in stages] == ["frozen", "lora", "lora", "lora"]
    lora = {"rank": 8, "alpha": 16, "dropout": 0.05, "targets": ["q_proj", "v_proj"]}
    assert all(stage.tune.lora == lora for stage in stages[1:])
    data = [stage.data[0].path.parent.name for stage in stages]
    assert data == ["openaqa_classification"] * 2 + ["openaqa_closed_ended", "openaqa"]
