"""The masked autoencoder: its loss and targets one pixel at a time, and that it learns."""

import math

import pytest
import torch
from pydantic import ValidationError

from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid, PatchMask, random_mask
from almosaic.objectives.autoencoder import (
    MaskedAutoencoderObjective,
    MaskedAutoencoderSettings,
    normalised,
    variance_explained,
)
from almosaic.objectives.predictor import PredictorSettings
from almosaic.objectives.single_view import hidden_pixels

GRID = PatchGrid(4, 8)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}


def parts(**changes):
    config = AudioMosaicConfig(**SIZES)
    settings = MaskedAutoencoderSettings(predictor=PredictorSettings(width=32, depth=1, heads=2), **changes)
    return AudioMosaicModel(config).train(), MaskedAutoencoderObjective(settings, config).train()


def padded(mask: PatchMask, columns: int) -> PatchMask:
    """The same mask of clips whose last patch columns are padding."""
    valid = torch.arange(GRID.patches).expand_as(mask.valid) < (GRID.time - columns) * GRID.freq
    return PatchMask(mask.ids_keep, mask.ids_masked, mask.ids_restore, valid)


def slow_loss(predicted, view, mask, normalise):
    """The formula, one patch and one pixel at a time."""
    clips = []
    for b in range(len(view)):
        losses = []
        for m, patch in enumerate(mask.ids_masked[b].tolist()):
            if not mask.valid[b, patch]:
                continue
            t, f = divmod(patch, GRID.freq)
            pixels = [view[b, 16 * t + i, 16 * f + j].item() for i in range(16) for j in range(16)]
            if normalise:
                mean = sum(pixels) / 256
                variance = sum((pixel - mean) ** 2 for pixel in pixels) / 255
                pixels = [(pixel - mean) / math.sqrt(variance + 1e-6) for pixel in pixels]
            errors = [(predicted[b, m, i].item() - pixel) ** 2 for i, pixel in enumerate(pixels)]
            losses.append(sum(errors) / 256)
        clips.append(sum(losses) / max(1, len(losses)))
    return sum(clips) / len(clips)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_that_of_a_plain_loop(normalise):
    encoder, objective = parts(normalise_patches=normalise)
    view, mask = 2.0 * torch.randn(3, 64, 128) + 1.0, padded(random_mask(GRID, 3, ratio=0.6), columns=1)
    output = objective(encoder, [view], [mask])
    tokens = encoder(view, ids_keep=mask.ids_keep).last_hidden_state
    predicted = objective.reconstruct(tokens, mask, GRID)
    assert predicted.shape == (3, 20, 256)
    expected = slow_loss(predicted, view, mask, normalise)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.metrics["reconstruction_loss"].item() == output.loss.item()


def test_one_weight_for_every_clip_however_much_of_it_is_padding():
    encoder, objective = parts()
    view, mask = torch.randn(2, 64, 128), random_mask(GRID, 2, ratio=0.5)
    valid = mask.valid.clone()
    valid[0, GRID.freq :] = False
    mask = PatchMask(mask.ids_keep, mask.ids_masked, mask.ids_restore, valid)
    alone = [
        objective(encoder, [view[i : i + 1]], [PatchMask(*(x[i : i + 1] for x in vars(mask).values()))]).loss
        for i in (0, 1)
    ]
    torch.testing.assert_close(objective(encoder, [view], [mask]).loss, sum(alone) / 2)


def test_a_perfect_prediction_has_loss_0_and_the_mean_explains_nothing():
    # A patch whose pixels no encoder has to see: all masked patches of all clips are alike.
    encoder, objective = parts()
    patch = torch.randn(16, 16)
    view, mask = patch.repeat(4, 8).expand(3, -1, -1), random_mask(GRID, 3, ratio=0.6)
    with torch.no_grad():
        objective.to_pixels.weight.zero_()
        objective.to_pixels.bias.copy_(normalised(patch.reshape(1, 1, -1)).flatten())
    output = objective(encoder, [view], [mask])
    assert output.loss.item() == pytest.approx(0.0, abs=1e-10)
    assert output.metrics["variance_explained"].item() == pytest.approx(1.0, abs=1e-6)
    with torch.no_grad():
        objective.to_pixels.bias.zero_()
    output = objective(encoder, [view], [mask])
    assert output.loss.item() == pytest.approx(255 / 256, rel=1e-4)
    assert output.metrics["variance_explained"].item() == pytest.approx(0.0, abs=1e-6)


def test_variance_explained_is_about_the_mean_of_the_valid_pixels():
    targets = 3.0 + torch.randn(4, 5, 7)
    valid = torch.rand(4, 5) < 0.6
    guess = targets + 0.5 * torch.randn_like(targets)
    chosen = targets[valid]
    expected = 1.0 - (guess[valid] - chosen).square().sum() / (chosen - chosen.mean()).square().sum()
    found = variance_explained((guess - targets).square().mean(dim=-1), targets, valid)
    torch.testing.assert_close(found, expected)
    assert variance_explained(torch.zeros(1, 2), torch.ones(1, 2, 3), torch.zeros(1, 2) > 0).isfinite()


def test_normalised_patches_keep_shape_and_lose_level_and_scale():
    pixels = torch.randn(2, 3, 256)
    found = normalised(pixels)
    torch.testing.assert_close(found.mean(dim=-1), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.std(dim=-1), torch.ones(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised(5.0 * pixels + 3.0), found, atol=1e-4, rtol=0)
    # A patch of digital silence: its rounding errors must not become a target.
    assert normalised(torch.full((1, 1, 256), -0.7 / 3)).abs().max() < 1e-3


def test_hidden_pixels_are_those_behind_the_mask():
    view, mask = torch.randn(2, 64, 128), random_mask(GRID, 2, ratio=0.5)
    found = hidden_pixels(view.bfloat16(), mask, GRID)
    assert found.dtype == torch.float32
    t, f = divmod(mask.ids_masked[1, 3].item(), GRID.freq)
    expected = view[1, 16 * t : 16 * t + 16, 16 * f : 16 * f + 16].bfloat16().float()
    assert torch.equal(found[1, 3].reshape(16, 16), expected)


def test_the_default_decoder_is_the_published_one():
    objective = MaskedAutoencoderObjective(MaskedAutoencoderSettings(), AudioMosaicConfig(**SIZES))
    assert len(objective.predictor.blocks) == 4 and objective.predictor.blocks[0].attn.heads == 6
    assert objective.to_pixels.weight.shape == (256, 384)


def test_refusals():
    encoder, objective = parts()
    view, mask = torch.randn(2, 64, 128), random_mask(GRID, 2, ratio=0.5)
    with pytest.raises(AlmosaicError, match=r"1 view with 1 mask.*masked_autoencoder, found 2 views and 2"):
        objective(encoder, [view, view], [mask, mask])
    with pytest.raises(AlmosaicError, match=r"found 2 views and 1 masks: name 1 view in the recipe"):
        objective(encoder, [view, view], [mask])
    with pytest.raises(AlmosaicError, match=r"some of the 32 patches.*keeps all: raise its ratio"):
        objective(encoder, [view], [random_mask(GRID, 2, ratio=0.0)])
    with pytest.raises(ValidationError):
        MaskedAutoencoderSettings(decoder=3)


def one_of_eight(clips, generator):
    """Clips that repeat one of four random patches, or its negative: any patch tells all others."""
    patches = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(3))
    kinds = torch.randint(0, 4, (clips,), generator=generator)
    signs = 1.0 - 2.0 * torch.randint(0, 2, (clips, 1, 1), generator=generator)
    return (signs * patches[kinds]).repeat(1, 4, 8)


def test_it_learns_what_visible_patches_tell_about_masked_ones():
    generator = torch.Generator().manual_seed(1)
    encoder, objective = parts(lid_neighbours=None)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=3e-3)
    for _ in range(50):
        mask = random_mask(GRID, 16, ratio=0.75, generator=generator)
        loss = objective(encoder, [one_of_eight(16, generator)], [mask]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mask = random_mask(GRID, 64, ratio=0.75, generator=generator)
    output = objective(encoder, [one_of_eight(64, generator)], [mask])
    assert output.loss < 0.5 and output.metrics["variance_explained"] > 0.5  # 1 and 0 for guessing the mean
