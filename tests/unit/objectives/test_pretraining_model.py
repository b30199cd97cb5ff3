"""The pretraining model: its config carries the objective, and folders load where they should."""

import math

import pytest
import torch
from transformers import AutoModel

from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.masking import random_mask
from almosaic.objectives.contrastive import ContrastiveSettings
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.training.optim import OptimSettings, parameter_groups

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}


def pretraining_model(**overrides):
    settings = ContrastiveSettings(temperature=0.2, projection_hidden=16, projection_size=8)
    config = AudioMosaicConfig(**SIZES, objective=settings.model_dump(), **overrides)
    return AudioMosaicForPreTraining(config)


def inputs(model, batch=4):
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(batch, 64, 128, generator=generator) for _ in range(2)]
    return views, [random_mask(model.config.grid, batch, ratio=0.5, generator=generator) for _ in views]


def test_forward_gives_a_loss_and_metrics():
    model = pretraining_model().train()
    output = model(*inputs(model))
    assert output.loss.ndim == 0 and output["metrics"]["contrastive_loss"] == output.loss
    assert model.objective.loss.temperature == 0.2 and not model.accepts_loss_kwargs
    model.after_step(0.5)


def test_without_a_stored_objective_it_is_the_published_one():
    model = AudioMosaicForPreTraining(AudioMosaicConfig(**SIZES))
    assert model.config.objective == ContrastiveSettings().model_dump()
    assert model.objective.projector[0].weight.shape == (512, 24)
    with pytest.raises(AlmosaicError, match="expected the settings of an objective"):
        AudioMosaicForPreTraining(AudioMosaicConfig(**SIZES, objective={"name": "x"}))


def test_save_and_load(tmp_path):
    model = pretraining_model().train()
    model(*inputs(model))
    model.save_pretrained(tmp_path / "pretraining")
    loaded = AudioMosaicForPreTraining.from_pretrained(tmp_path / "pretraining")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert loaded.config.objective == model.config.objective
    trainable = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in model.named_parameters() if p.requires_grad}
    views, masks = inputs(model)
    torch.testing.assert_close(loaded.eval()(views, masks).loss, model.eval()(views, masks).loss)


def test_the_encoder_alone_loads_through_auto_model(tmp_path):
    model = pretraining_model()
    model.encoder.save_pretrained(tmp_path / "encoder")
    model.save_pretrained(tmp_path / "pretraining")
    for folder in ("encoder", "pretraining"):
        encoder = AutoModel.from_pretrained(tmp_path / folder)
        assert type(encoder) is AudioMosaicModel
        torch.testing.assert_close(encoder.state_dict(), model.encoder.state_dict(), rtol=0, atol=0)


def test_a_learned_temperature_is_saved_loaded_and_starts_again_without_a_stored_one(tmp_path):
    settings = ContrastiveSettings(learnable_temperature=True, projection_hidden=16, projection_size=8)
    model = AudioMosaicForPreTraining(AudioMosaicConfig(**SIZES, objective=settings.model_dump()))
    name, log_scale = "objective.loss.log_scale", model.objective.loss.log_scale
    assert model.state_dict()[name].item() == pytest.approx(math.log(1 / 0.07))
    with torch.no_grad():
        log_scale.fill_(1.25)
    model.save_pretrained(tmp_path / "pretraining")
    model.encoder.save_pretrained(tmp_path / "encoder")
    loaded = AudioMosaicForPreTraining.from_pretrained(tmp_path / "pretraining")
    assert loaded.state_dict()[name].item() == 1.25
    fresh = AudioMosaicForPreTraining.from_pretrained(tmp_path / "encoder")
    assert fresh.state_dict()[name].item() == pytest.approx(math.log(1 / 0.07))
    decayed, plain = parameter_groups(model, OptimSettings(steps=1), {"all": ""})[::-1]
    assert decayed["weight_decay"] > 0 == plain["weight_decay"]
    assert any(parameter is log_scale for parameter in plain["params"])


def test_the_heads_are_initialised_like_the_encoder():
    model = AudioMosaicForPreTraining(AudioMosaicConfig.from_preset("tiny"))
    weight = model.objective.projector[0].weight
    assert 0.018 < weight.std() < 0.022
    assert model.objective.projector[1].weight.eq(1).all() and model.objective.projector[4].bias.eq(0).all()


def test_a_few_steps_learn_to_tell_clips_apart():
    torch.manual_seed(0)
    model = pretraining_model().train()
    clips = torch.randn(16, 64, 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        views = [clips + 0.1 * torch.randn_like(clips) for _ in range(2)]
        masks = [random_mask(model.config.grid, 16, ratio=0.25) for _ in views]
        output = model(views, masks)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.5 * losses[0] and output.metrics["contrastive_accuracy"] > 0.6
