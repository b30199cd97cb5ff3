"""What only the LTU recipe asks of a stage: its prompt, labels on questions, norms of the encoder alone."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from almosaic.alm import AlmosaicProcessor
from almosaic.alm.alpaca import ALPACA_SHORT
from almosaic.data.collate import ChatCollator
from almosaic.errors import AlmosaicError
from almosaic.loading import load_model
from almosaic.training.alm_parts import Parts
from almosaic.training.optim import OptimSettings, rate_factor

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers_tiny import answered, tiny_tokenizer
from stages import run_alm, tiny_bank

from almosaic.features import AudioMosaicFeatureExtractor

NORMS = {"projector": "full", "audio_tower": "norms"}


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    """Projector and norms under the prompt of LTU, with labels on the prompt."""
    folder = tmp_path_factory.mktemp("ltu")
    keys = {"tune": NORMS, "chat_template": "alpaca_short", "train_on_prompt": True}
    return folder / "model", run_alm(folder, parts, tiny_bank(), optim={"steps": 2}, **keys)


def test_norms_alone_change_and_later_stages_keep_the_prompt(parts, trained, tmp_path):
    before, after = (
        load_file(parts.audio_tower / "model.safetensors"),
        load_file(trained[0] / "model.safetensors"),
    )
    towers = {name.removeprefix("audio_tower."): value for name, value in after.items() if "tower" in name}
    changed = {name for name, value in towers.items() if not torch.equal(before[name], value)}
    assert changed == {"norm_pre.weight", "norm_pre.bias"}, "this encoder has no final norm"
    start = Parts(start=trained[0])
    run_alm(tmp_path, start, tiny_bank(), projector=None, optim={"steps": 1})
    model, processor = load_model(tmp_path / "model", device="cpu")
    assert processor.chat_template == ALPACA_SHORT
    assert model.generation_config.eos_token_id[-1] == processor.tokenizer.eos_token_id
    with pytest.raises(AlmosaicError, match="leave `chat_template` out"):
        run_alm(tmp_path / "x", start, tiny_bank(), projector=None, chat_template="alpaca_short")


def test_an_encoder_with_a_final_norm_trains_that_one_too(tmp_path):
    from helpers_tiny import tiny_encoder, tiny_model

    from almosaic.alm import TuneSettings, apply_tuning

    model, _ = tiny_model(tmp_path, audio_tower=tiny_encoder(final_norm="layernorm"))
    counts = apply_tuning(model, TuneSettings(**NORMS))
    trainable = {name for name, one in model.audio_tower.named_parameters() if one.requires_grad}
    assert trainable == {f"{norm}.{kind}" for norm in ("norm_pre", "norm") for kind in ("weight", "bias")}
    assert counts["audio_tower"] == 4 * 32
    apply_tuning(model, TuneSettings())
    assert not any(parameter.requires_grad for parameter in model.audio_tower.parameters())


def test_stored_features_need_norms_that_stay(parts):
    with pytest.raises(ValueError, match=r"needs tune\.audio_tower: frozen"):
        run_alm(Path("nowhere"), parts, tiny_bank(), tune=NORMS, cache_features=True)


def test_labels_on_the_prompt_are_those_of_text_after_text(tmp_path):
    """Never on a placeholder, on padding, or on what follows a clip, which no text comes before."""
    extractor = AudioMosaicFeatureExtractor(window_frames=64)
    processor = AlmosaicProcessor(extractor, tiny_tokenizer(tmp_path), chat_template=ALPACA_SHORT, queries=4)
    clips = ([60], [])
    encoded = [processor.encode(answered("a dog", clips=len(own)), own) for own in clips]
    rows = [
        {"clip_index": n, "encoded": one, "features": [], "bad_clips": []} for n, one in enumerate(encoded)
    ]
    rows[0]["features"] = [torch.zeros(1, 4, 8, 32).numpy()]
    usual, whole = (ChatCollator(processor, trained)(rows) for trained in (False, True))
    assert torch.equal(usual["input_ids"], whole["input_ids"])
    for row, audio in enumerate((4, 0)):
        ids, labels = whole["input_ids"][row].tolist(), whole["labels"][row].tolist()
        length = len(encoded[row].input_ids)
        first = audio + 1  # behind the clip, or at the very start, stands the first token of the sequence
        assert ids[audio] == processor.tokenizer.bos_token_id
        assert labels == [-100] * first + ids[first:length] + [-100] * (len(ids) - length)
    assert (usual["labels"] != -100).sum() < (whole["labels"] != -100).sum()


def test_labels_on_the_prompt_change_what_is_learned(parts, trained, tmp_path):
    keys = {"tune": NORMS, "chat_template": "alpaca_short"}
    answers_alone = run_alm(tmp_path, parts, tiny_bank(), optim={"steps": 2}, **keys)
    assert abs(answers_alone[1] - trained[1][1]) > 1e-3


def test_a_warm_up_of_one_or_more_is_a_number_of_steps():
    chosen = OptimSettings(epochs=2, warmup=100, schedule="linear")
    assert [rate_factor(chosen, step, 1100) for step in (49, 100, 600)] == pytest.approx([50 / 101, 1.0, 0.5])
