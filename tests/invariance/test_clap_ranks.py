"""Two processes with half of the sounds and texts each learn exactly like one process with all of them."""

import os

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from almosaic.encoder import AudioMosaicConfig
from almosaic.masking import PatchMask, random_mask
from almosaic.objectives.clap import ClapSettings
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.objectives.ranks import world_size
from almosaic.objectives.text_encoder import TextEncoderSettings

CLIPS, RANKS, STEPS = 6, 2, 2
TEXTS = ["dog", "a bell rings", "rain", "dog", "rain", "a longer text of its own"]  # equal ones across ranks
WAYS = {"plain": None, "chunks": 2}


def clap_model(way):
    torch.manual_seed(0)
    text = TextEncoderSettings(width=16, layers=1, heads=2, max_bytes=32)
    objective = ClapSettings(
        text_encoder=text, projection_hidden=16, projection_size=8, cache_chunk=WAYS[way], lid_neighbours=2
    )
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}
    config = AudioMosaicConfig(**sizes, drop_path_rate=0.5, objective=objective.model_dump())
    model = AudioMosaicForPreTraining(config).train()
    with torch.no_grad():  # a fresh CLS token is almost zero, and LayerNorm then blows rounding up
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def batch(rows):
    """The given rows of a fixed batch: a view, its mask, the noise of drop path and texts."""
    generator = torch.Generator().manual_seed(1)
    view = torch.randn(CLIPS, 64, 128, generator=generator)
    noise = torch.rand(CLIPS, 2, 2, generator=generator)
    mask = random_mask(clap_model("plain").config.grid, CLIPS, ratio=0.5, generator=generator)
    mask = PatchMask(
        *(tensor[rows] for tensor in (mask.ids_keep, mask.ids_masked, mask.ids_restore, mask.valid))
    )
    return {"views": [view[rows]], "masks": [mask], "texts": TEXTS[rows], "path_noise": [noise[rows]]}


def train(model, rows):
    """Plain SGD; the losses, and gradients and metrics of the first step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses, gradients, metrics = [], {}, {}
    for step in range(STEPS):
        optimizer.zero_grad()
        output = model(**batch(rows))
        output.loss.backward()
        losses.append(output.loss.detach())
        if step == 0:
            gradients = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}
            metrics = {name: value.item() for name, value in output.metrics.items()}
        optimizer.step()
    state = {name.removeprefix("module."): value for name, value in model.state_dict().items()}
    return {"losses": torch.stack(losses), "gradients": gradients, "metrics": metrics, "state": state}


def one_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    assert world_size() == RANKS
    share = slice(rank * CLIPS // RANKS, (rank + 1) * CLIPS // RANKS)
    found = {}
    for way in WAYS:
        wrapped = DistributedDataParallel(clap_model(way), find_unused_parameters=way == "chunks")
        found[way] = train(wrapped, share)
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap_ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "OMP_NUM_THREADS", "1")
        torch.multiprocessing.spawn(one_rank, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone():
    assert world_size() == 1
    return train(clap_model("plain"), slice(None))


@pytest.mark.parametrize("way", WAYS)
def test_the_mean_loss_and_recall_are_those_of_one_process(ranks, alone, way):
    mean = torch.stack([rank[way]["losses"] for rank in ranks]).mean(0)
    torch.testing.assert_close(mean, alone["losses"], atol=0, rtol=5e-5)
    assert ranks[0][way]["losses"][0] != ranks[1][way]["losses"][0]
    for name in ("clap_loss", "recall_audio_to_text", "recall_text_to_audio", "temperature"):
        mean = sum(rank[way]["metrics"][name] for rank in ranks) / RANKS
        assert mean == pytest.approx(alone["metrics"][name], abs=1e-5), name
    for rank in ranks:  # these see the clips of all processes
        for name in ("different_texts", "lid_mean", "lid_var", "effective_rank"):
            assert rank[way]["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-3), name
    assert alone["metrics"]["different_texts"] == pytest.approx(4 / 6)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_after_averaging_are_those_of_one_process(ranks, alone, way):
    for name, gradient in alone["gradients"].items():
        for rank in ranks:
            difference = (rank[way]["gradients"][name] - gradient).abs().max()
            assert difference < 2e-5 * max(1.0, gradient.abs().max()), name
    assert alone["gradients"]["objective.text_encoder.byte_embed.weight"].abs().max() > 1e-3
    assert alone["gradients"]["encoder.cls_token"].abs().max() > 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_weights_and_batch_norm_statistics_agree_after_training(ranks, alone, way):
    for rank in ranks:
        torch.testing.assert_close(rank[way]["state"], alone["state"], atol=5e-6, rtol=1e-4)
    assert alone["state"]["objective.text_projector.1.num_batches_tracked"] == STEPS
