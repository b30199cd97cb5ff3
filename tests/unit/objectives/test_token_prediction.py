"""Random-projection tokens: nearest codes by brute force, their use, and that predicting them is learned."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.masking import PatchGrid, PatchMask, random_mask
from almosaic.objectives.predictor import PredictorSettings
from almosaic.objectives.single_view import hidden_pixels
from almosaic.objectives.token_prediction import (
    QuantiserSettings,
    RandomQuantiser,
    TokenPredictionObjective,
    TokenPredictionSettings,
    code_metrics,
)

GRID = PatchGrid(4, 8)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}


def quantiser(**settings):
    return RandomQuantiser(QuantiserSettings(**({"codes": 64, "code_width": 8} | settings)), 256)


def parts(**settings):
    config = AudioMosaicConfig(**SIZES)
    chosen = TokenPredictionSettings(
        predictor=PredictorSettings(width=32, depth=1, heads=2),
        quantiser=QuantiserSettings(**({"codes": 16, "code_width": 8} | settings)),
        lid_neighbours=None,
    )
    return AudioMosaicModel(config).train(), TokenPredictionObjective(chosen, config).train()


@pytest.mark.parametrize("centre", [True, False])
def test_the_nearest_code_by_brute_force(centre):
    made = quantiser(codebooks=2, centre_patches=centre)
    patches = torch.randn(3, 5, 256, dtype=torch.float64).float() + 0.5
    found = made(patches)
    assert found.shape == (3, 5, 2) and found.dtype == torch.int64
    projections, codes = made.projections.double().numpy(), made.codes.double().numpy()
    for b, m, k in np.ndindex(3, 5, 2):
        pixels = patches[b, m].double().numpy()
        if centre:
            pixels = (pixels - pixels.mean()) / pixels.std()
        projected = pixels @ projections[k]
        projected /= np.linalg.norm(projected)
        distances = [np.linalg.norm(projected - code) for code in codes[k]]
        assert found[b, m, k] == int(np.argmin(distances))


def test_codes_ignore_scale_and_centred_ones_the_level_too():
    patches = torch.randn(2, 40, 256)
    for centre, same in ((True, True), (False, False)):
        made = quantiser(centre_patches=centre)
        assert torch.equal(made(3.0 * patches), made(patches))
        assert torch.equal(made(patches + 2.0), made(patches)) == same


def test_a_patch_without_variation_has_code_0():
    made = quantiser()
    levels = torch.linspace(-1.7, 1.3, 50)[None, :, None].expand(1, 50, 256)
    wobble = 1e-6 * torch.randn(1, 50, 256)  # what rounding leaves
    assert made(levels).eq(0).all() and made(levels + wobble).eq(0).all()
    assert made(levels + 1e3 * wobble).unique().numel() > 10


def test_projections_are_xavier_and_codes_have_length_1():
    made = quantiser(codes=512, code_width=16, codebooks=2)
    limit = math.sqrt(6 / (256 + 16))
    assert made.projections.abs().max() <= limit and made.projections.abs().max() > 0.99 * limit
    assert made.projections.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    torch.testing.assert_close(made.codes.norm(dim=-1), torch.ones(2, 512))
    assert made.codes.mean().abs() < 0.01 and not torch.equal(made.codes[0], made.codes[1])


def test_the_seed_alone_decides():
    torch.manual_seed(1)
    first = quantiser().state_dict()
    torch.manual_seed(2)
    np.random.seed(2)
    torch.testing.assert_close(quantiser().state_dict(), first, rtol=0, atol=0)
    assert not torch.equal(quantiser(seed=1).codes, first["codes"])
    assert set(first) == {"projections", "codes"} and not list(quantiser().parameters())


def test_autocast_does_not_move_codes():
    made, patches = quantiser(), torch.randn(2, 1000, 256)  # bfloat16 would move one in thirteen
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = made(patches)
    assert torch.equal(inside, made(patches))


def slow_loss(logits, targets, mask):
    """Cross-entropy, one code at a time: loss and accuracy."""
    clips, hits = [], []
    for b in range(len(logits)):
        losses, right = [], []
        for m, patch in enumerate(mask.ids_masked[b].tolist()):
            if mask.valid[b, patch]:
                for k, code in enumerate(targets[b, m].tolist()):
                    scores = logits[b, m, k].double().tolist()
                    losses.append(math.log(sum(map(math.exp, scores))) - scores[code])
                    right.append(scores.index(max(scores)) == code)
        clips.append(np.mean(losses))
        hits.append(np.mean(right))
    return np.mean(clips), np.mean(hits)


@pytest.mark.parametrize("codebooks", [1, 3])
def test_the_loss_is_that_of_a_plain_loop(codebooks):
    encoder, objective = parts(codebooks=codebooks)
    view, mask = torch.randn(3, 64, 128), random_mask(GRID, 3, ratio=0.6)
    valid = torch.arange(32).expand(3, -1) < torch.tensor([[32], [24], [9]])
    mask = PatchMask(mask.ids_keep, mask.ids_masked, mask.ids_restore, valid)
    output = objective(encoder, [view], [mask])
    tokens = encoder(view, ids_keep=mask.ids_keep).last_hidden_state
    logits = objective.code_logits(tokens, mask, GRID)
    assert logits.shape == (3, 20, codebooks, 16)
    loss, accuracy = slow_loss(logits, objective.quantiser(hidden_pixels(view, mask, GRID)), mask)
    assert output.loss.item() == pytest.approx(loss, rel=1e-5) == output.metrics["token_loss"].item()
    assert output.metrics["token_accuracy"].item() == pytest.approx(accuracy)


def test_a_certain_and_right_head_has_loss_0():
    encoder, objective = parts()
    patch = torch.randn(16, 16)
    view, mask = patch.repeat(4, 8).expand(3, -1, -1), random_mask(GRID, 3, ratio=0.6)
    code = objective.quantiser(patch.reshape(1, 1, 256)).item()
    with torch.no_grad():
        objective.to_codes.weight.zero_()
        objective.to_codes.bias.zero_()[code] = 50.0
    output = objective(encoder, [view], [mask])
    assert output.loss.item() == pytest.approx(0.0, abs=1e-6)
    assert output.metrics["token_accuracy"].item() == 1.0
    assert output.metrics["code_perplexity"].item() == output.metrics["commonest_code"].item() == 1.0


def test_a_collapse_of_the_codes_is_visible():
    even = torch.arange(64).reshape(4, 16, 1)
    everywhere = torch.ones(4, 16, dtype=torch.bool)
    found = code_metrics(even, everywhere, 64)
    assert found["code_perplexity"].item() == pytest.approx(64.0, rel=1e-6)
    assert found["codes_used"] == 1.0 and found["commonest_code"].item() == pytest.approx(1 / 64)
    found = code_metrics(torch.zeros_like(even), everywhere, 64)
    assert found["code_perplexity"] == 1.0 == found["commonest_code"]
    assert found["codes_used"].item() == pytest.approx(1 / 64)
    # 64 targets can use 64 of many codes at most; padding is no target; codebooks are averaged.
    assert code_metrics(even, everywhere, 1000)["codes_used"] == 1.0
    half = everywhere & (torch.arange(4) < 2)[:, None]
    assert code_metrics(even, half, 64)["code_perplexity"].item() == pytest.approx(32.0, rel=1e-6)
    both = torch.cat([even, torch.zeros_like(even)], dim=2)
    assert code_metrics(both, everywhere, 64)["code_perplexity"].item() == pytest.approx(32.5, rel=1e-6)


def test_patches_that_differ_in_level_most_use_the_codes_only_when_centred():
    levels = 30.0 * torch.randn(1, 2000, 1)
    patches = levels + torch.randn(1, 2000, 256)
    everywhere = torch.ones(1, 2000, dtype=torch.bool)
    perplexity = [
        code_metrics(quantiser(centre_patches=centre)(patches), everywhere, 64)["code_perplexity"].item()
        for centre in (True, False)
    ]
    assert perplexity[0] > 40 and perplexity[1] < 10


def test_refused_settings():
    for wrong in ({"codes": 1}, {"code_width": 0}, {"codebooks": 0}, {"seed": -1}, {"normalise": True}):
        with pytest.raises(ValidationError):
            QuantiserSettings(**wrong)


def one_of_eight(clips, generator):
    """Clips that repeat one of eight random patches: any patch tells the code of all others."""
    patches = torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(3))
    return patches[torch.randint(0, 8, (clips,), generator=generator)].repeat(1, 4, 8)


def test_it_learns_what_visible_patches_tell_about_masked_ones():
    generator = torch.Generator().manual_seed(1)
    encoder, objective = parts(codes=64)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=3e-3)
    for _ in range(40):
        mask = random_mask(GRID, 16, ratio=0.75, generator=generator)
        loss = objective(encoder, [one_of_eight(16, generator)], [mask]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mask = random_mask(GRID, 64, ratio=0.75, generator=generator)
    output = objective(encoder, [one_of_eight(64, generator)], [mask])
    frequencies_alone = output.metrics["code_perplexity"].log()
    assert frequencies_alone > 1.5 and output.loss < 0.5 * frequencies_alone
    assert output.metrics["token_accuracy"] > 0.6
