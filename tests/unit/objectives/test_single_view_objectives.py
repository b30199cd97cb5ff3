"""What objectives of a single view owe the trainer: rows, padding, bfloat16, gradients, saved folders."""

import pytest
import torch

from almosaic.encoder import AudioMosaicConfig
from almosaic.masking import PatchGrid, PatchMask, random_mask
from almosaic.objectives.pretraining import AudioMosaicForPreTraining

GRID = PatchGrid(4, 8)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}
PREDICTOR = {"width": 32, "depth": 1, "heads": 2}
OBJECTIVES = {
    "masked_autoencoder": {"predictor": PREDICTOR},
    "token_prediction": {"predictor": PREDICTOR, "quantiser": {"codes": 16, "code_width": 8, "seed": 5}},
    "position_prediction": {},
}


@pytest.fixture(params=OBJECTIVES)
def name(request):
    return request.param


def pretraining_model(name, **changes):
    torch.manual_seed(0)
    config = AudioMosaicConfig(**(SIZES | changes), objective={"name": name, **OBJECTIVES[name]})
    return AudioMosaicForPreTraining(config).train()


def rows_of(mask, chosen):
    return PatchMask(*(tensor[chosen] for tensor in vars(mask).values()))


def test_several_masks_of_a_clip_are_rows_of_their_own(name):
    model = pretraining_model(name)
    view, mask = torch.randn(2, 64, 128).repeat_interleave(3, dim=0), random_mask(GRID, 6, ratio=0.6)
    alone = [model([view[i : i + 1]], [rows_of(mask, slice(i, i + 1))]).loss for i in range(6)]
    torch.testing.assert_close(model([view], [mask]).loss, torch.stack(alone).mean())


@pytest.mark.parametrize("name", ["masked_autoencoder", "token_prediction"])
def test_what_hidden_padding_holds_changes_nothing(name):
    model = pretraining_model(name)
    view, mask = torch.randn(3, 64, 128), random_mask(GRID, 3, ratio=0.6)
    padding = ~mask.kept & (torch.arange(32) >= 16)
    mask = PatchMask(mask.ids_keep, mask.ids_masked, mask.ids_restore, ~padding)
    cells = padding.view(3, 4, 8).repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    found, other = (model([v], [mask]) for v in (view, torch.where(cells, torch.randn(64, 128), view)))
    assert torch.equal(found.loss, other.loss)
    torch.testing.assert_close(found.metrics, other.metrics, rtol=0, atol=0)


def test_a_batch_of_padding_alone_has_loss_0_and_gradients(name):
    model = pretraining_model(name)
    mask = random_mask(GRID, 2, ratio=0.6)
    mask = PatchMask(mask.ids_keep, mask.ids_masked, mask.ids_restore, torch.zeros_like(mask.valid))
    output = model([torch.zeros(2, 64, 128)], [mask])
    output.loss.backward()
    assert output.loss == 0.0 and all(value.isfinite() for value in output.metrics.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": "cls"},
        {"pooling": "mean_valid", "final_norm": "layernorm"},
        {"drop_path_rate": 0.5, "fixed_positions": True},
        {"patch_norm": False, "pre_norm": False},
    ],
)
def test_every_parameter_has_a_gradient_in_every_encoder(name, changes):
    model = pretraining_model(name, **changes)
    output = model([torch.randn(4, 64, 128)], [random_mask(GRID, 4, ratio=0.6)])
    output.loss.backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None]
    assert {"effective_rank", "lid_mean", "lid_var"} < set(output.metrics)


def test_costly_metrics_can_be_left_out(name):
    model = pretraining_model(name)
    given = [torch.randn(4, 64, 128)], [random_mask(GRID, 4, ratio=0.6)]
    full = model(*given)
    model.objective.measures = False
    cheap = model(*given)
    assert {"effective_rank", "lid_mean", "lid_var"} <= set(full.metrics) - set(cheap.metrics)
    assert torch.equal(cheap.loss, full.loss)
    assert not any(value.requires_grad for value in full.metrics.values())


def test_drop_path_noise_is_passed_on(name):
    model = pretraining_model(name, drop_path_rate=0.9, initializer_range=0.2)
    given = [torch.randn(2, 64, 128)], [random_mask(GRID, 2, ratio=0.6)]
    kept, dropped = torch.ones(2, 2, 2), torch.zeros(2, 2, 2)
    losses = [model(*given, path_noise=[noise]).loss for noise in (kept, kept, dropped)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_bfloat16_autocast(name):
    model = pretraining_model(name, initializer_range=0.1)
    given = [torch.randn(4, 64, 128)], [random_mask(GRID, 4, ratio=0.6)]
    expected = model(*given).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*given)
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected, rtol=0.03, atol=0.03)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_saved_folder_gives_the_same_loss(name, tmp_path):
    model = pretraining_model(name)
    with torch.no_grad():  # so that nothing that is filled anew would go unnoticed
        for tensor in model.state_dict().values():
            tensor.add_(0.01)
    model.save_pretrained(tmp_path / "pretraining")
    loaded = AudioMosaicForPreTraining.from_pretrained(tmp_path / "pretraining").train()
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert {key for key, _ in loaded.named_buffers()} == {key for key, _ in model.named_buffers()}
    given = [torch.randn(2, 64, 128)], [random_mask(GRID, 2, ratio=0.6)]
    assert torch.equal(loaded(*given).loss, model(*given).loss)


def test_heads_that_a_folder_lacks_are_filled(name, tmp_path):
    model = pretraining_model(name)
    model.encoder.save_pretrained(tmp_path / "encoder")
    loaded = AudioMosaicForPreTraining.from_pretrained(tmp_path / "encoder", config=model.config)
    torch.testing.assert_close(dict(loaded.named_buffers()), dict(model.named_buffers()), rtol=0, atol=0)
    for key, parameter in loaded.objective.named_parameters():
        assert parameter.isfinite().all()
        assert parameter.ndim == 1 or 0.01 < parameter.std() < 0.03, key
