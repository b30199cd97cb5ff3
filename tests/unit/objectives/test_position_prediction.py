"""Position prediction: solved by a constructed encoder, its loss patch by patch, and learned."""

import math

import pytest
import torch

from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid, PatchMask, random_mask
from almosaic.objectives.position_prediction import (
    PositionPredictionObjective,
    PositionPredictionSettings,
    position_loss,
)

GRID = PatchGrid(4, 8)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}


def parts(**changes):
    config = AudioMosaicConfig(**(SIZES | changes))
    objective = PositionPredictionObjective(PositionPredictionSettings(lid_neighbours=None), config)
    return AudioMosaicModel(config).train(), objective.train()


def numbered(grid, rows=1):
    """A window whose patch n has one bright pixel, its n-th: the content tells the position."""
    patches = torch.eye(grid.patches, 256).reshape(1, grid.time, grid.freq, 16, 16)
    return patches.transpose(2, 3).reshape(1, grid.time * 16, grid.freq * 16).expand(rows, -1, -1)


def constructed(encoder, objective):
    """Blocks that add nothing, and a head that reads which pixel is bright."""
    with torch.no_grad():
        encoder.patch_embed.proj.weight.copy_(torch.eye(32, 256).reshape(32, 1, 16, 16))
        for block in encoder.blocks:
            block.attn.proj.weight.zero_()
            block.mlp.fc2.weight.zero_()
        objective.head.weight.copy_(20.0 * torch.eye(32))


def test_a_constructed_encoder_solves_it():
    encoder, objective = parts()
    constructed(encoder, objective)
    output = objective(encoder, [numbered(GRID, 3)], [random_mask(GRID, 3, ratio=0.75)])
    assert output.loss.item() == pytest.approx(0.0, abs=1e-6)
    for name in ("position_accuracy", "column_accuracy", "band_accuracy"):
        assert output.metrics[name] == 1.0
    assert output.metrics["position_chance"].item() == pytest.approx(1 / 24)


def test_the_answer_is_that_of_the_window_not_of_the_content():
    encoder, objective = parts()
    constructed(encoder, objective)
    other_order = numbered(GRID).roll(16, dims=1)  # every patch one column later
    metrics = objective(encoder, [other_order], [random_mask(GRID, 1, ratio=0.5)]).metrics
    assert metrics["position_accuracy"] == metrics["column_accuracy"] == 0.0
    assert metrics["band_accuracy"] == 1.0


def test_dropped_positions_are_unknown_and_the_others_known():
    """Positions decide nothing about the tokens of dropped patches, where blocks add nothing."""
    encoder, objective = parts()
    constructed(encoder, objective)
    view, mask = torch.randn(2, 64, 128), random_mask(GRID, 2, ratio=0.5)
    loss = objective(encoder, [view], [mask]).loss
    with torch.no_grad():
        encoder.pos_embed += torch.randn_like(encoder.pos_embed)
    assert torch.equal(objective(encoder, [view], [mask]).loss, loss)
    # Blocks that attend see the positions of the kept ones.
    encoder, objective = parts(initializer_range=0.2)
    loss = objective(encoder, [view], [mask]).loss
    with torch.no_grad():
        encoder.pos_embed += torch.randn_like(encoder.pos_embed)
    assert not torch.equal(objective(encoder, [view], [mask]).loss, loss)


def test_the_loss_is_that_of_a_plain_loop():
    mask = random_mask(GRID, 3, ratio=0.5)
    valid = torch.arange(32).expand(3, -1) < torch.tensor([[32], [24], [9]])
    mask = PatchMask(mask.ids_keep, mask.ids_masked, mask.ids_restore, valid)
    logits = torch.randn(3, 16, 32)
    losses, right, columns, bands = [], [], [], []
    for b in range(3):
        row = []
        for m, place in enumerate(mask.ids_masked[b].tolist()):
            if valid[b, place]:
                scores = logits[b, m].double().tolist()
                guess = scores.index(max(scores))
                loss = math.log(sum(map(math.exp, scores))) - scores[place]
                row.append((loss, guess == place, guess // 8 == place // 8, guess % 8 == place % 8))
        for found, values in zip((losses, right, columns, bands), zip(*row, strict=True), strict=True):
            found.append(sum(values) / len(values))
    loss, metrics = position_loss(logits, mask, GRID)
    assert loss.item() == pytest.approx(sum(losses) / 3, rel=1e-5) == metrics["position_loss"].item()
    for name, values in (("position", right), ("column", columns), ("band", bands)):
        assert metrics[f"{name}_accuracy"].item() == pytest.approx(sum(values) / 3)


def test_where_padding_belongs_is_not_asked():
    mask = random_mask(GRID, 2, ratio=0.5)
    valid = torch.arange(32).expand(2, -1) < torch.tensor([[32], [20]])
    mask = PatchMask(mask.ids_keep, mask.ids_masked, mask.ids_restore, valid)
    logits = torch.randn(2, 16, 32, requires_grad=True)
    position_loss(logits, mask, GRID)[0].backward()
    assert torch.equal(logits.grad.abs().sum(dim=2) > 0, valid.gather(1, mask.ids_masked))


def test_logits_are_those_of_the_dropped_patches():
    _, objective = parts()
    tokens, mask = torch.randn(2, 33, 32), random_mask(GRID, 2, ratio=0.25)
    found = objective.position_logits(tokens, mask, GRID)
    assert found.shape == (2, 8, 32)
    one = tokens[1, 1 + mask.ids_masked[1, 5]]
    torch.testing.assert_close(found[1, 5], objective.head(objective.norm(one)))


def test_every_patch_is_read():
    assert PositionPredictionObjective.encoder_tokens([200], 512) == 513
    _, objective = parts()

    class Counting(AudioMosaicModel):
        def forward(self, view, **given):
            found = super().forward(view, **given)
            assert found.last_hidden_state.shape[1] == 33
            return found

    encoder = Counting(AudioMosaicConfig(**SIZES))
    assert objective(encoder, [torch.randn(2, 64, 128)], [random_mask(GRID, 2, ratio=0.9)]).loss.isfinite()


def test_a_shorter_window_has_the_first_positions_and_a_longer_one_none():
    encoder, objective = parts()
    constructed(encoder, objective)
    short = PatchGrid(2, 8)
    output = objective(encoder, [numbered(short, 2)], [random_mask(short, 2, ratio=0.5)])
    assert output.metrics["position_accuracy"] == 1.0 and output.loss.item() == pytest.approx(0.0, abs=1e-6)
    logits = objective.position_logits(torch.randn(2, 17, 32), random_mask(short, 2, ratio=0.5), short)
    assert logits.shape == (2, 8, 16)
    with pytest.raises(AlmosaicError, match=r"at most 64 frames.*32 positions, found 80 frames"):
        objective(encoder, [torch.randn(2, 80, 128)], [random_mask(PatchGrid(5, 8), 2, ratio=0.5)])


def test_refusals():
    encoder, objective = parts()
    view, mask = torch.randn(2, 64, 128), random_mask(GRID, 2, ratio=0.5)
    with pytest.raises(AlmosaicError, match=r"1 view with 1 mask.*position_prediction, found 1 views and 2"):
        objective(encoder, [view], [mask, mask])
    with pytest.raises(
        AlmosaicError, match=r"position_prediction, found one that keeps all: raise its ratio"
    ):
        objective(encoder, [view], [random_mask(GRID, 2, ratio=0.0)])


def ramps(clips, generator):
    """Sounds that grow louder and brighter, below noise: content and neighbours tell place and band."""
    time, bins = torch.linspace(-1.5, 1.5, 64)[:, None], torch.linspace(-1.5, 1.5, 128)
    waves = (time * 6.0).sin() + (bins * 9.0).cos() + time + bins
    return waves + 0.1 * torch.randn(clips, 64, 128, generator=generator)


def test_it_learns_where_patches_belong():
    generator = torch.Generator().manual_seed(1)
    encoder, objective = parts()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=3e-3)
    for _ in range(60):
        mask = random_mask(GRID, 16, ratio=0.5, generator=generator)
        loss = objective(encoder, [ramps(16, generator)], [mask]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = objective(encoder, [ramps(64, generator)], [random_mask(GRID, 64, ratio=0.5)])
    assert output.loss < 0.5 * math.log(16)  # of a guess among the dropped positions
    assert output.metrics["position_accuracy"] > 0.5
