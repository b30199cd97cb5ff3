"""The encoder: token order first, then masking, shapes, pooling, training switches and saving."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.encoder.modeling import DropPath
from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.masking import PatchGrid, random_mask, time_mask

GOLDEN = Path(__file__).parents[2] / "golden" / "encoder_tokens.npz"


def tiny(**overrides):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}
    return AudioMosaicConfig(**{**sizes, **overrides})


def spectrogram(batch=2, frames=64, bins=128, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, frames, bins)).astype(np.float32))


def test_which_spectrogram_cells_does_token_n_see():
    model = AudioMosaicModel(tiny()).eval()
    grid = model.config.grid
    assert grid == PatchGrid(4, 8)
    silent = torch.zeros(1, 64, 128)
    reference = model.patch_embed(silent)
    for frame, mel in [(0, 0), (15, 15), (16, 0), (0, 16), (40, 100), (63, 127)]:
        changed = silent.clone()
        changed[0, frame, mel] = 1.0
        moved = (model.patch_embed(changed) - reference).abs().sum(-1)[0].nonzero().flatten().tolist()
        assert moved == [(frame // 16) * grid.freq + mel // 16]


def test_golden_tokens():
    """Weights and input are arithmetic, so that no random generator can change them."""
    model = AudioMosaicModel(tiny()).eval()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(model.named_parameters()):
            if name != "pos_embed":
                values = torch.arange(parameter.numel(), dtype=torch.float64) * 0.7 + i
                parameter.copy_((values.sin() * 0.2 + (parameter.ndim == 1)).reshape(parameter.shape))
        cells = torch.arange(64 * 128, dtype=torch.float64)
        found = model(
            (cells * 0.37).cos().float().reshape(1, 64, 128), ids_keep=torch.tensor([[1, 8, 17, 30]])
        )
    stored = np.load(GOLDEN)
    np.testing.assert_allclose(found.last_hidden_state, stored["tokens"], atol=2e-5)
    np.testing.assert_allclose(found.pooler_output, stored["pooled"], atol=2e-5)


def test_kept_tokens_are_independent_of_masked_cells():
    model = AudioMosaicModel(tiny()).eval()
    features = spectrogram()
    mask = time_mask(model.config.grid, 2, ratio=0.5, generator=torch.Generator().manual_seed(1))
    masked = model(features, ids_keep=mask.ids_keep)
    assert masked.last_hidden_state.shape == (2, 1 + 16, 24)
    hidden = ~mask.kept.reshape(2, 4, 8).repeat_interleave(16, 1).repeat_interleave(16, 2)
    other = torch.where(hidden, torch.randn_like(features), features)
    torch.testing.assert_close(
        model(other, ids_keep=mask.ids_keep).last_hidden_state, masked.last_hidden_state
    )
    seen = torch.where(hidden, features, features + 1.0)
    assert not torch.allclose(model(seen, ids_keep=mask.ids_keep).pooler_output, masked.pooler_output)


def test_keeping_everything_in_order_is_no_masking():
    model = AudioMosaicModel(tiny()).eval()
    features, everything = spectrogram(), torch.arange(32).expand(2, -1)
    torch.testing.assert_close(
        model(features, ids_keep=everything).last_hidden_state, model(features).last_hidden_state
    )


def test_token_order_follows_ids_keep():
    model = AudioMosaicModel(tiny()).eval()
    features, drawn = spectrogram(1), torch.tensor([[9, 2, 30]])
    forward, backward = model(features, ids_keep=drawn), model(features, ids_keep=drawn.flip(1))
    tokens = forward.last_hidden_state[:, 1:]
    torch.testing.assert_close(tokens, backward.last_hidden_state[:, 1:].flip(1))


def test_embed_is_what_the_blocks_read():
    model, features = AudioMosaicModel(tiny()).eval(), spectrogram()
    for ids in (None, torch.tensor([[1, 8, 30], [0, 9, 17]])):
        read = model(features, ids_keep=ids, output_hidden_states=True).hidden_states[0]
        assert torch.equal(model.embed(features, ids), read)


def test_a_patch_without_its_position_could_lie_anywhere():
    model, features = AudioMosaicModel(tiny()).eval(), spectrogram()
    ids = torch.tensor([[1, 8, 30], [0, 9, 17]])
    dropped = torch.tensor([[False, True, False], [True, True, False]])
    found = model.embed(features, ids, dropped)
    with torch.no_grad():
        model.pos_embed[:, 1 + 8] += 1.0
        model.pos_embed[:, 1 + 9] -= 1.0
    assert torch.equal(model.embed(features, ids, dropped), found)
    read = model(features, ids, dropped_positions=dropped, output_hidden_states=True).hidden_states[0]
    assert torch.equal(read, found)
    placed = model.embed(features, ids)
    assert torch.equal(placed[0, 1], found[0, 1]) and torch.equal(placed[:, 3], found[:, 3])
    assert not torch.allclose(placed[:, 2], found[:, 2]) and not torch.allclose(placed[1, 1], found[1, 1])
    with torch.no_grad():
        model.pos_embed[:, 1:].zero_()
    everything = torch.ones(2, 32, dtype=torch.bool)
    assert torch.equal(model.embed(features, dropped_positions=everything), model.embed(features))


@pytest.mark.parametrize("shape", [(2, 32), (3,), (1, 3)])
def test_wrong_dropped_positions_name_both(shape):
    ids = torch.tensor([[1, 8, 30], [0, 9, 17]])
    with pytest.raises(AlmosaicError, match=r"expected dropped_positions \[2, 3\].*found \["):
        AudioMosaicModel(tiny()).embed(spectrogram(), ids, torch.zeros(shape, dtype=torch.bool))


def test_hidden_states_and_final_norm():
    model = AudioMosaicModel(tiny(final_norm="layernorm")).eval()
    found = model(spectrogram(), output_hidden_states=True)
    assert len(found.hidden_states) == 3 and model(spectrogram()).hidden_states is None
    assert not torch.allclose(found.hidden_states[-1], found.last_hidden_state)
    torch.testing.assert_close(model.norm(found.hidden_states[-1]), found.last_hidden_state)
    plain = AudioMosaicModel(tiny()).eval()(spectrogram(), output_hidden_states=True)
    assert torch.equal(plain.hidden_states[-1], plain.last_hidden_state)


def test_pooling():
    features, frames = spectrogram(), torch.zeros(2, 64, dtype=torch.bool)
    frames[0, :17], frames[1] = True, True
    mean = AudioMosaicModel(tiny()).eval()
    found = mean(features, input_features_mask=frames)
    torch.testing.assert_close(found.pooler_output, found.last_hidden_state.mean(1))
    weights = mean.state_dict()

    def pooled(pooling, **inputs):
        model = AudioMosaicModel(tiny(pooling=pooling)).eval()
        model.load_state_dict(weights)
        return model(features, **inputs).pooler_output

    torch.testing.assert_close(pooled("cls"), found.last_hidden_state[:, 0])
    torch.testing.assert_close(pooled("mean_valid"), found.pooler_output)
    valid = pooled("mean_valid", input_features_mask=frames)
    torch.testing.assert_close(valid[0], found.last_hidden_state[0, : 1 + 16].mean(0))
    torch.testing.assert_close(valid[1], found.pooler_output[1])
    ids = torch.tensor([[3, 20], [3, 20]])
    kept = mean(features, ids_keep=ids).last_hidden_state
    valid = pooled("mean_valid", input_features_mask=frames, ids_keep=ids)
    torch.testing.assert_close(valid, torch.stack([kept[0, :2].mean(0), kept[1].mean(0)]))


@pytest.mark.parametrize("frames", [32, 96])
def test_other_window_lengths(frames):
    model = AudioMosaicModel(tiny()).eval()
    assert model(spectrogram(frames=frames)).last_hidden_state.shape == (2, 1 + frames // 2, 24)


@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 63, 128), (2, 1, 64, 128), (2, 0, 128), (64, 128)])
def test_wrong_input_shapes_name_both(shape):
    model = AudioMosaicModel(tiny())
    with pytest.raises(AlmosaicError, match=r"expected input_features \[B, T, 128\].*found \[") as error:
        model(torch.zeros(shape))
    assert str(list(shape)) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 4), (8,)])
def test_wrong_ids_keep_name_both(shape):
    with pytest.raises(AlmosaicError, match=r"expected ids_keep \[2, K\].*found"):
        AudioMosaicModel(tiny())(spectrogram(), ids_keep=torch.zeros(shape, dtype=torch.long))


def test_initialisation():
    model = AudioMosaicModel(AudioMosaicConfig.from_preset("tiny"))
    for name, parameter in model.named_parameters():
        if name == "pos_embed":
            assert parameter[0, 0].eq(0).all() and parameter[0, 1:].abs().max() == 1.0
        elif name == "cls_token":
            assert parameter.abs().max() < 1e-5
        elif parameter.ndim > 1:
            assert 0.018 < parameter.std() < 0.022 and parameter.abs().max() < 0.2, name
        else:
            assert parameter.eq(1.0 if "norm" in name and name.endswith("weight") else 0.0).all(), name


def test_drop_path_keeps_the_mean_and_grows_over_blocks():
    model = AudioMosaicModel(tiny(num_hidden_layers=3, drop_path_rate=0.2))
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.1, 0.2]
    drop = DropPath(0.25).train()
    kept = drop(torch.ones(4000, 1, 2), torch.rand(4000))
    assert set(kept[..., 0].flatten().tolist()) == {0.0, torch.ones(()).div(0.75).item()}
    assert (kept[..., 0] == kept[..., 1]).all() and abs(kept.mean().item() - 1.0) < 0.04
    edge = drop(torch.ones(3, 1, 1), torch.tensor([0.2499, 0.25, 0.999])).flatten()
    torch.testing.assert_close(edge, torch.tensor([0.0, 4 / 3, 4 / 3]))
    assert torch.equal(drop.eval()(torch.ones(3, 2, 2), None), torch.ones(3, 2, 2))


def test_given_path_noise_decides_which_branches_are_left_out():
    model = AudioMosaicModel(tiny(num_hidden_layers=2, drop_path_rate=0.5)).train()
    features, noise = spectrogram(3), torch.full((3, 2, 2), 0.9)
    noise[0, 1] = 0.1  # both branches of the last block
    noise[1, 1, 1] = 0.1  # its MLP
    first, last = model.blocks
    x = model(features, output_hidden_states=True, path_noise=noise).hidden_states
    torch.testing.assert_close(x[1], first(x[0]))
    assert torch.equal(x[2][0], x[1][0])
    torch.testing.assert_close(x[2][1], x[1][1] + 2 * last.attn(last.norm1(x[1]))[1])
    torch.testing.assert_close(x[2][2], last(x[1], torch.ones(3, 2))[2])
    for rows in ([0, 1], [2]):  # the same rows in other batches
        part = model(features[rows], path_noise=noise[rows]).pooler_output
        torch.testing.assert_close(part, model(features, path_noise=noise).pooler_output[rows])
    with pytest.raises(AlmosaicError, match=r"expected path_noise \[3, 2, 2\].*found \[2, 2\]"):
        model(features, path_noise=noise[0])


def test_path_noise_is_drawn_once_per_forward_and_only_where_it_is_used():
    model, features = AudioMosaicModel(tiny(drop_path_rate=0.5)).train(), spectrogram(8)
    torch.manual_seed(5)
    found = model(features).pooler_output
    torch.manual_seed(5)
    noise = model.draw_path_noise(8)
    assert noise.shape == (8, 2, 2)
    assert torch.equal(found, model(features, path_noise=noise).pooler_output)
    assert not torch.equal(found, model(features).pooler_output)
    assert model.eval().draw_path_noise(8) is None
    assert torch.equal(model(features).pooler_output, model(features, path_noise=noise).pooler_output)
    assert AudioMosaicModel(tiny()).train().draw_path_noise(8) is None


def test_gradient_checkpointing_changes_no_gradient():
    def gradients(checkpointing):
        torch.manual_seed(0)
        model = AudioMosaicModel(tiny(drop_path_rate=0.5)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(3)
        model(spectrogram(4)).pooler_output.square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    torch.testing.assert_close(gradients(True), gradients(False))


def test_compiles_without_a_graph_break():
    model = AudioMosaicModel(tiny()).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    mask = random_mask(model.config.grid, 2, ratio=0.5)
    features = spectrogram()
    torch.testing.assert_close(
        compiled(features, ids_keep=mask.ids_keep).last_hidden_state,
        model(features, ids_keep=mask.ids_keep).last_hidden_state,
    )


def test_low_precision_weights_take_float32_input():
    model = AudioMosaicModel(tiny()).eval().to(torch.bfloat16)
    assert model(spectrogram()).pooler_output.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full = AudioMosaicModel(tiny()).eval()(spectrogram()).pooler_output
    assert full.isfinite().all()


def test_save_and_load_through_the_auto_classes(tmp_path):
    model = AudioMosaicModel(tiny()).eval()
    with torch.no_grad():
        model.pos_embed.add_(torch.randn_like(model.pos_embed))
    model.save_pretrained(tmp_path)
    AudioMosaicFeatureExtractor(window_frames=64).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is AudioMosaicModel and not loaded.training
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is AudioMosaicFeatureExtractor
