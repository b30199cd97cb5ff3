"""Published audio-language weights: every tensor where a forward pass by hand wants it, and back again."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers_tiny import tiny_language_model, tiny_model, tiny_tokenizer, waveform
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, GenerationConfig, LlamaForCausalLM, Qwen2Config

from almosaic.alm.ltu import TUNE, with_final_norm
from almosaic.alm.tuning import apply_tuning
from almosaic.cli import main
from almosaic.encoder import AudioMosaicConfig
from almosaic.encoder.conversion import to_released
from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor, log_mel_fbank
from almosaic.inference import generate
from almosaic.loading import load_model
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.released import convert_released, write_released
from almosaic.weight_files import read_weights

D, H, LAYERS, BLOCKS, RANK = 64, 16, 32, 12, 8
PREFIX = "base_model.model.model."
BLOCK = {
    "norm1.weight": (D,), "norm1.bias": (D,),
    "attn.qkv.weight": (3 * D, D), "attn.qkv.bias": (3 * D,),
    "attn.proj.weight": (D, D), "attn.proj.bias": (D,),
    "norm2.weight": (D,), "norm2.bias": (D,),
    "mlp.fc1.weight": (4 * D, D), "mlp.fc1.bias": (4 * D,),
    "mlp.fc2.weight": (D, 4 * D), "mlp.fc2.bias": (D,),
}  # fmt: skip
STEM = {
    "cls_token": (1, 1, D), "pos_embed": (1, 513, D),
    "patch_embed.proj.weight": (D, 1, 16, 16), "patch_embed.proj.bias": (D,),
    "patch_embed.norm.weight": (D,), "patch_embed.norm.bias": (D,),
    "norm_pre.weight": (D,), "norm_pre.bias": (D,), "norm.weight": (D,), "norm.bias": (D,),
}  # fmt: skip


class Release(NamedTuple):
    """A published file at tiny width, the Llama that it belongs to, and the model made of both."""

    tensors: dict[str, Tensor]
    file: Path
    llama: Path
    model: Path


def published() -> dict[str, Tensor]:
    """Random tensors under the names and shapes of the release, at its full depth."""
    shapes: dict[str, tuple[int, ...]] = {f"audio_encoder.{key}": shape for key, shape in STEM.items()}
    for block in range(BLOCKS):
        shapes |= {f"audio_encoder.blocks.{block}.{key}": shape for key, shape in BLOCK.items()}
    shapes |= {"audio_proj.1.weight": (H, D), "audio_proj.1.bias": (H,)}
    for layer in range(LAYERS):
        for name, rows in (("q_proj", H), ("v_proj", H // 2)):
            place = f"layers.{layer}.self_attn.{name}.lora_"
            shapes |= {f"{place}A.default.weight": (RANK, H), f"{place}B.default.weight": (rows, RANK)}
    generator = torch.Generator().manual_seed(3)
    return {
        PREFIX + key: torch.randn(shape, generator=generator) * 0.15 + (1.0 if "norm" in key else 0.0)
        for key, shape in shapes.items()
    }


def llama(folder: Path, **changes: Any) -> Path:
    """A Llama with grouped keys, and a tokenizer that has no pad token."""
    tokenizer = tiny_tokenizer(folder, pad_token=False)
    sizes = {"hidden_size": H, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    tiny_language_model(len(tokenizer), **{**sizes, "num_hidden_layers": LAYERS, **changes}).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    tensors = published()
    torch.save(tensors, folder / "extra_weights.bin")
    llama(folder / "llama")
    command = ["export", "--from-released", str(folder / "extra_weights.bin"), str(folder / "model")]
    options = ["--preset", "ltu", "--language-model", str(folder / "llama")]
    assert main([*command, *options]) == 0
    return Release(tensors, folder / "extra_weights.bin", folder / "llama", folder / "model")


def audio_tokens(t: dict[str, Tensor], features: Tensor) -> Tensor:
    """Windows [1, 1024, 128] to audio tokens [1, 32, H], in plain torch from the published keys."""
    t = {key.removeprefix(PREFIX + "audio_encoder."): value for key, value in t.items()}

    def normed(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (D,), t[f"{name}.weight"], t[f"{name}.bias"], eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    x = F.conv2d(features[:, None], t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=16)
    x = normed(x.flatten(2).transpose(1, 2), "patch_embed.norm")
    x = normed(torch.cat([t["cls_token"], x], dim=1) + t["pos_embed"], "norm_pre")
    for block in range(BLOCKS):
        name = f"blocks.{block}."
        q, k, v = linear(normed(x, name + "norm1"), name + "attn.qkv").chunk(3, dim=-1)
        mixed = (q @ k.transpose(1, 2) / D**0.5).softmax(dim=-1) @ v  # one head of 64 channels
        x = x + linear(mixed, name + "attn.proj")
        x = x + linear(F.gelu(linear(normed(x, name + "norm2"), name + "mlp.fc1")), name + "mlp.fc2")
    x = normed(x, "norm")[:, 1:]
    pooled = x.reshape(1, 8, 64, D).mean(dim=1).reshape(1, 32, 2, D).mean(dim=2) / 50
    return F.linear(
        F.layer_norm(pooled, (D,), eps=1e-5),
        t[f"{PREFIX}audio_proj.1.weight"],
        t[f"{PREFIX}audio_proj.1.bias"],
    )


def adapted_llama(release: Release) -> LlamaForCausalLM:
    """The language model with the adapters added by hand: alpha 16 over rank 8 makes a scale of 2."""
    model = LlamaForCausalLM.from_pretrained(release.llama)
    for layer, block in enumerate(model.model.layers):
        for name in ("q_proj", "v_proj"):
            place = f"{PREFIX}layers.{layer}.self_attn.{name}.lora_"
            down, up = (release.tensors[f"{place}{side}.default.weight"] for side in "AB")
            getattr(block.self_attn, name).weight.data += 2.0 * up @ down
    return model.eval()


def test_the_file_has_the_published_number_of_tensors(release: Release) -> None:
    kinds = [key.removeprefix(PREFIX).split(".")[0] for key in release.tensors]
    assert [kinds.count(kind) for kind in ("audio_encoder", "audio_proj", "layers")] == [154, 2, 128]


def test_logits_are_those_of_a_forward_pass_by_hand(release: Release) -> None:
    """Audio tokens, the first token, the prompt; encoder, pooling, projector and LoRA in plain torch."""
    model, processor = load_model(release.model, device="cpu")
    clip = waveform(3.0, seed=5)
    ask = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "what do you hear"}]}]
    inputs = processor([ask], [[clip]])
    with torch.no_grad():
        found = model(**inputs).logits[0, 32:]
        log_mel, frames = log_mel_fbank(torch.from_numpy(clip)[None])
        padded = F.pad(log_mel, (0, 0, 0, 1024 - int(frames)))
        audio = audio_tokens(release.tensors, (padded + 5.081) / 4.4849)
        base = adapted_llama(release)
        text = "<s> ### Instruction:\nwhat do you hear\n\n### Response:\n"
        ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        embeds = torch.cat([audio, base.get_input_embeddings()(ids)], dim=1)
        expected = base(inputs_embeds=embeds).logits[0, 32:]
        deaf = base(inputs_embeds=torch.cat([0 * audio, embeds[:, 32:]], dim=1)).logits[0, 32:]
    words = expected.shape[-1]
    torch.testing.assert_close(found[:, :words], expected, atol=2e-4, rtol=1e-4)
    assert (deaf - expected).abs().max() > 0.05, "the audio must matter for this to say anything"


def test_the_folder_is_partial_and_says_how_it_was_published(release: Release) -> None:
    config = json.loads((release.model / "config.json").read_text())
    assert config["projector"] == {"name": "pool", "queries": 32, "layout": "released"}
    targets = ["q_proj", "v_proj"]
    assert config["lora"] == {"rank": 8, "alpha": 16, "dropout": 0.05, "targets": targets}
    assert config["audio_config"]["final_norm"] == "layernorm"
    assert config["language_model_source"]["path"] == "../llama"
    assert len(config["language_model_source"]["sha256"]) == 64
    stored = load_file(release.model / "model.safetensors")
    assert len(stored) == 284
    decoding = GenerationConfig.from_pretrained(release.model)
    chosen = (decoding.temperature, decoding.top_p, decoding.top_k, decoding.repetition_penalty)
    assert decoding.do_sample and chosen == (0.1, 0.95, 500, 1.1) and decoding.max_new_tokens == 400
    assert decoding.pad_token_id == 0 and decoding.eos_token_id == [2]
    front_end = AudioMosaicFeatureExtractor.from_pretrained(release.model)
    assert (front_end.mean, front_end.std, front_end.std_factor) == (-5.081, 4.4849, 1.0)


def test_it_answers_and_its_adapters_go_on_training(release: Release) -> None:
    model, processor = load_model(release.model, device="cpu")
    row = {"messages": [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "what"}]}]}
    (record,) = generate(model, processor, [row | {"audios": [(waveform(1.0), 16_000)]}], max_new_tokens=3)
    assert isinstance(record["prediction"], str)
    adapter = model.language_model.model.layers[31].self_attn.v_proj.lora_A["default"].weight
    before = adapter.detach().clone()
    counts = apply_tuning(model, TUNE)
    assert torch.equal(adapter, before) and all(counts.values())


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_back_to_the_published_names(release: Release, tmp_path: Path, suffix: str) -> None:
    back = tmp_path / f"back{suffix}"
    assert main(["export", "--to-released", str(release.model), str(back)]) == 0
    found = read_weights(back)
    assert found.keys() == release.tensors.keys()
    assert all(torch.equal(found[key], value) for key, value in release.tensors.items())


def test_a_model_of_another_form_does_not_go_back(tmp_path: Path) -> None:
    model, _ = tiny_model(tmp_path, projector="pool")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(AlmosaicError, match=r"expected projector .*'released'.* found .*'true'"):
        write_released(tmp_path / "model", tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


Q_DOWN = f"{PREFIX}layers.31.self_attn.q_proj.lora_A.default.weight"
NORM = f"{PREFIX}audio_encoder.norm.bias"
WRONG = {
    "missing": ([Q_DOWN], {}, f"1 missing ({Q_DOWN})"),
    "no final norm": ([NORM, NORM.replace("bias", "weight")], {}, "2 missing"),
    "encoder lacks": ([f"{PREFIX}audio_encoder.cls_token"], {}, "1 missing (cls_token)"),
    "extra": ([], {f"{PREFIX}norm.weight": (H,)}, f"1 unexpected ({PREFIX}norm.weight)"),
    "rank": ([], {Q_DOWN: (4, H)}, "q_proj.lora_A.default.weight [4, 16] instead of [8, 16]"),
    "a block less": (
        [f"{PREFIX}audio_encoder.blocks.11.{key}" for key in BLOCK], {},
        "expected an encoder of 12 blocks over windows of 1024 frames, found one of 11 blocks",
    ),
}  # fmt: skip


def refused(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says about a mistake: one line, status 2, nothing written."""
    capsys.readouterr()
    assert main(["export", "--from-released", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and len(line) < 1000 and not out.exists()
    return line


@pytest.mark.parametrize("name", WRONG)
def test_keys_and_shapes_that_do_not_fit_are_one_line(
    release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    without, added, expected = WRONG[name]
    tensors = {key: value for key, value in release.tensors.items() if key not in without}
    tensors |= {key: torch.zeros(shape) for key, shape in added.items()}
    save_file(tensors, tmp_path / "wrong.safetensors")
    options = ["--preset", "ltu", "--language-model", str(release.llama)]
    out = tmp_path / "out"
    line = refused([str(tmp_path / "wrong.safetensors"), str(out), *options], out, capsys)
    assert expected in line and "wrong.safetensors" in line


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"hidden_size": 32}, "found a llama of width 32 with 32 layers"),
        ({"num_hidden_layers": 3}, "found a llama of width 16 with 3 layers"),
        ({"num_key_value_heads": 2}, "v_proj.lora_B.default.weight [8, 8] instead of [16, 8]"),
    ],
)
def test_another_llama_is_one_line(
    release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    changes: dict[str, int], found: str,
) -> None:  # fmt: skip
    other = llama(tmp_path / "other", **changes)
    options = ["--preset", "ltu", "--language-model", str(other)]
    line = refused([str(release.file), str(tmp_path / "out"), *options], tmp_path / "out", capsys)
    assert found in line
    assert "num_key_value_heads" in changes or "expected a llama of width 16 with 32 layers" in line


def test_other_files_and_folders_are_one_line(
    release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = len(PREFIX + "audio_encoder.")
    encoder = {key[start:]: value for key, value in release.tensors.items() if "audio_encoder" in key}
    torch.save(encoder, tmp_path / "encoder.bin")
    torch.save({"model": Path("x")}, tmp_path / "code.bin")
    Qwen2Config(hidden_size=16, num_hidden_layers=32).save_pretrained(tmp_path / "qwen")
    given = str(release.file)
    ltu = ["--preset", "ltu", "--language-model"]
    for file, options, expected in (
        (tmp_path / "encoder.bin", [*ltu, str(release.llama)], "for an encoder alone leave the"),
        (tmp_path / "code.bin", [*ltu, str(release.llama)], "could run code"),
        (given, [*ltu, str(tmp_path / "qwen")], "found a qwen2 of width 16 with 32 layers"),
        (given, [*ltu, str(tmp_path / "nowhere")], "no such folder"),
        (given, [*ltu, str(tmp_path)], "expected the folder of a language model, found none"),
        (given, ["--language-model", str(release.llama)], "expected preset ltu"),
        (given, [*ltu, str(release.llama), "--probe-layer", "1"], "probe_layer 1"),
    ):
        line = refused([str(file), str(tmp_path / "out"), *options], tmp_path / "out", capsys)
        assert expected in line, line


def test_the_encoder_alone_still_comes_out(release: Release, tmp_path: Path) -> None:
    convert_released(release.file, tmp_path / "encoder", "ltu")
    assert AutoConfig.from_pretrained(tmp_path / "encoder").final_norm == "layernorm"
    stored = load_file(tmp_path / "encoder" / "model.safetensors")
    assert torch.equal(stored["norm.bias"], release.tensors[NORM])


def test_a_pretraining_checkpoint_becomes_the_encoder_that_ltu_starts_from(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "window_frames": 64}
    torch.manual_seed(0)
    model = AudioMosaicForPreTraining(AudioMosaicConfig(**sizes, objective={"name": "contrastive"}))
    released = to_released(model.config, model.state_dict())
    released["fc_norm.weight"] = torch.randn(64)
    save_file(released, tmp_path / "pretrained.safetensors")
    convert_released(tmp_path / "pretrained.safetensors", tmp_path / "encoder", "ltu")
    encoder, front_end = load_model(tmp_path / "encoder", device="cpu")
    assert torch.equal(encoder.norm.weight, released["fc_norm.weight"])
    assert (encoder.config.final_norm, front_end.std_factor) == ("layernorm", 1.0)
    assert with_final_norm({"norm.weight": released["fc_norm.weight"]}).keys() == {"norm.weight"}
