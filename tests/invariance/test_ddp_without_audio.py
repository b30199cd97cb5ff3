"""Two processes, one of which gets a batch without audio: nobody hangs, and gradients are the mean."""

import socket
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from helpers_tiny import answered, tiny_model, waveform
from torch.nn.parallel import DistributedDataParallel

from almosaic.alm import TuneSettings, apply_tuning


def batches(processor):
    """What each process trains on; the second has no clip."""
    heard = processor([answered()], [[waveform(1.2)]], add_generation_prompt=False)
    read = processor([answered("a dog barks", clips=0)], add_generation_prompt=False)
    return heard, read


def gradients(model, batch):
    model.train()
    model(**batch).loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}


def work(rank, port, folder):
    limit = timedelta(seconds=120)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=limit)
    assert dist.get_world_size() == 2
    model, processor = tiny_model(folder / f"rank-{rank}")
    apply_tuning(model, TuneSettings())
    found = gradients(DistributedDataParallel(model), batches(processor)[rank])
    torch.save(found, folder / f"gradients-{rank}.pt")
    dist.destroy_process_group()


def test_a_process_without_audio_keeps_the_others_in_step(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The other process is rank 1, this one rank 0.
    other = multiprocessing.get_context("spawn").Process(target=work, args=(1, port, Path(tmp_path)))
    other.start()
    work(0, port, Path(tmp_path))
    other.join()
    assert other.exitcode == 0
    model, processor = tiny_model(tmp_path / "alone")
    apply_tuning(model, TuneSettings())
    heard, _ = batches(processor)
    expected = gradients(model, heard)
    for rank in range(2):
        found = torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True)
        assert len(found) == len(expected) > 0
        for name, gradient in found.items():
            assert torch.allclose(gradient, expected[name.removeprefix("module.")] / 2, atol=1e-6), name
