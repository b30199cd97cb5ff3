"""Gradient checkpointing: the same gradients from activations that are computed again, whatever is frozen."""

import warnings

import pytest
import torch
from helpers_tiny import answered, tiny_encoder, tiny_model, waveform
from torch import nn

from almosaic.alm import TuneSettings, apply_tuning

PROJECTORS = ["mlp", "pool", "qformer", "segment_qformer"]
LORA = {"language_model": "lora", "lora_rank": 2, "lora_dropout": 0.0}
TUNED = {
    "projector": TuneSettings(),
    "projector and tower": TuneSettings(audio_tower="full"),
    "norms of the tower": TuneSettings(audio_tower="norms"),
    "tower alone": TuneSettings(audio_tower="full", projector="frozen"),
    "adapters alone": TuneSettings(projector="frozen", **LORA),
    "everything": TuneSettings(audio_tower="full", language_model="full"),
}
# Of each part, a layer that lies within what is computed again.
INNER = {"mlp": "linear_1", "pool": "linear"} | dict.fromkeys(
    PROJECTORS[2:], "qformer.encoder.layer.1.output_query.dense"
)


@pytest.fixture
def built(request, tmp_path):
    """A model whose encoder leaves out random branches, a batch of one and three windows, one of words."""
    model, processor = tiny_model(tmp_path, request.param, audio_tower=tiny_encoder(drop_path_rate=0.5))
    audio = [[waveform(0.4, 1)], [waveform(1.2, 2), waveform(0.3, 3)]]
    talks = [answered("yes"), answered("a dog barks", clips=2)]
    words = processor([answered(clips=0)], add_generation_prompt=False)
    return request.param, model, processor(talks, audio, add_generation_prompt=False), words


def count_calls(model, projector):
    """Forward calls of one inner layer of each part, a counter that fills itself."""
    layers = {
        "tower": model.audio_tower.blocks[1].mlp.fc1,
        "projector": model.multi_modal_projector.get_submodule(INNER[projector]),
        "language model": model.language_model.model.layers[1].mlp.act_fn,
    }
    calls = dict.fromkeys(layers, 0)
    for part, layer in layers.items():

        def note(*_, part=part):
            calls[part] += 1

        layer.register_forward_pre_hook(note)  # before: recomputation may stop inside the last layer
    return calls


def enable(model, reentrant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions have another name for it
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing


def gradients(model, batch):
    """Gradients of every trained weight."""
    torch.manual_seed(1)
    model.zero_grad()
    model(**batch).loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(weight.grad is not None and weight.grad.any() for weight in trained.values())
    return {name: weight.grad.clone() for name, weight in trained.items()}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # true of a frozen projector
@pytest.mark.parametrize("reentrant", [False, True], ids=["saved tensors", "reentrant"])
@pytest.mark.parametrize("tuned", TUNED)
@pytest.mark.parametrize("built", PROJECTORS, indirect=True)
def test_gradients_are_the_same_and_layers_run_twice(built, tuned, reentrant):
    projector, model, batch, _ = built
    settings = TUNED[tuned]
    apply_tuning(model, settings)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)  # zero at first, which gives the other factor no gradient
    model.train()
    expected = gradients(model, batch)
    calls = count_calls(model, projector)
    enable(model, reentrant)
    found = gradients(model, batch)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    heard = settings.audio_tower != "frozen" or settings.projector == "full"
    assert calls == {
        "tower": 1 if settings.audio_tower == "frozen" else 2,
        "projector": 2 if heard else 1,
        "language model": 2,
    }


@pytest.mark.parametrize("reentrant", [False, True], ids=["saved tensors", "reentrant"])
@pytest.mark.parametrize("built", ["mlp", "qformer"], indirect=True)
def test_stored_tokens_and_batches_without_clips_reach_what_is_trained(built, reentrant):
    """Neither stored tokens nor the words of a frozen table need a gradient: a graph could end there."""
    _, model, batch, words = built
    apply_tuning(model, TuneSettings(**LORA))
    with torch.no_grad():
        windows = batch.pop("input_features"), batch.pop("input_features_mask")
        stored = {**batch, "audio_features": model.get_audio_features(*windows).last_hidden_state}
    enable(model, reentrant)
    model.train()
    for given in (stored, words):
        model.zero_grad()
        model(**given).loss.backward()
        assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
        assert model.language_model.model.layers[0].mlp.down_proj.lora_B.default.weight.grad.any()
    assert all(not weight.grad.any() for weight in model.multi_modal_projector.parameters())
