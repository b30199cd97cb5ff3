"""Audio-text alignment: the loss against an explicit loop, equal texts, both towers, what is refused."""

import math

import numpy as np
import pytest
import torch

from almosaic.encoder import AudioMosaicConfig
from almosaic.errors import AlmosaicError
from almosaic.masking import random_mask, time_mask
from almosaic.objectives.clap import ClapObjective, ClapSettings, PairedInfoNCE, text_hash
from almosaic.objectives.monitors import representation_metrics
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.objectives.text_encoder import TextEncoderSettings

TEXT = TextEncoderSettings(width=16, layers=1, heads=2, max_bytes=32)
SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "window_frames": 64}
TEXTS = ["dog", "rain", "a bell rings", "dog"]


def slow_loss(sounds, words, kinds, temperature):
    """One choice at a time, every clip of a text an answer to it: loss, recall@1 from sounds and texts."""
    sounds = sounds / np.linalg.norm(sounds, axis=1, keepdims=True)
    words = words / np.linalg.norm(words, axis=1, keepdims=True)
    losses, recalls = [], []
    for asking, answering in ((sounds, words), (words, sounds)):
        hits = []
        for i in range(len(kinds)):
            scores = [float(asking[i] @ other) / temperature for other in answering]
            total = math.log(sum(math.exp(score) for score in scores))
            right = [j for j in range(len(kinds)) if kinds[j] == kinds[i]]
            losses.append(sum(total - scores[j] for j in right) / len(right))
            hits.append(int(np.argmax(scores)) in right)
        recalls.append(np.mean(hits))
    return np.mean(losses), *recalls


def drawn(kinds, width=5):
    """Sounds, and words that resemble them; equal kinds have one word."""
    sounds, words = np.random.default_rng(0).normal(size=(2, len(kinds), width))
    words += 0.7 * sounds
    return torch.from_numpy(sounds), torch.from_numpy(words[[kinds.index(kind) for kind in kinds]])


def loss_at(temperature):
    loss = PairedInfoNCE()
    with torch.no_grad():
        loss.log_scale.fill_(-math.log(temperature))
    return loss


@pytest.mark.parametrize("kinds", [[0, 1, 2, 3, 4, 5, 6], [3, 3, 9, 3, 1, 1, 2], [5] * 7])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_against_the_explicit_loop(kinds, temperature):
    sounds, words = drawn(kinds)
    loss, metrics = loss_at(temperature)(sounds, words, torch.tensor(kinds))
    expected, audio_to_text, text_to_audio = slow_loss(sounds.numpy(), words.numpy(), kinds, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5) and loss.shape == ()
    assert metrics["recall_audio_to_text"].item() == pytest.approx(audio_to_text)
    assert metrics["recall_text_to_audio"].item() == pytest.approx(text_to_audio)
    assert metrics["different_texts"].item() == pytest.approx(len(set(kinds)) / 7)
    assert metrics["temperature"].item() == pytest.approx(temperature)
    assert not any(value.requires_grad for value in metrics.values())


def test_clips_of_one_text_do_not_repel():
    """The gradient is that of targets spread evenly over them, and vanishes once they lie together."""
    kinds = [3, 3, 9, 3, 1, 1, 2]
    sounds, words = (x.float().requires_grad_() for x in drawn(kinds))
    found = torch.autograd.grad(PairedInfoNCE()(sounds, words, torch.tensor(kinds))[0], (sounds, words))
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (sounds, words)]
    logits = unit[0] @ unit[1].T / 0.07
    same = torch.tensor(kinds)[:, None] == torch.tensor(kinds)
    spread = same / same.sum(dim=1, keepdim=True)
    both = [torch.nn.functional.cross_entropy(scores, spread) for scores in (logits, logits.T)]
    # A word is one vector however often it is said: what counts is the sum over the clips of a kind.
    expected = torch.autograd.grad(sum(both) / 2, (sounds, words))
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(same.float() @ found[1], same.float() @ expected[1])
    together = torch.eye(3)[[0, 0, 1]].requires_grad_()
    loss, _ = loss_at(0.01)(together, torch.eye(3)[[0, 0, 1]], torch.tensor([7, 7, 8]))
    assert loss.item() == pytest.approx(2 / 3 * math.log(2), abs=1e-4)  # the floor of two clips of a text
    assert torch.autograd.grad(loss, together)[0].abs().max() < 1e-4


def test_the_ways_of_recall_differ():
    sounds, words = torch.tensor([[1.0, 0.0], [0.8, 0.6]]), torch.tensor([[1.0, 0.0], [0.95, 0.3]])
    metrics = PairedInfoNCE()(sounds, words, torch.arange(2))[1]
    assert metrics["recall_audio_to_text"] == 1.0
    metrics = PairedInfoNCE()(words, sounds, torch.arange(2))[1]
    assert metrics["recall_audio_to_text"] == 0.5 and metrics["recall_text_to_audio"] == 1.0


@pytest.mark.parametrize("log_scale, temperature", [(9.0, 0.01), (-3.0, 1.0)])
def test_the_temperature_stays_between_its_limits(log_scale, temperature):
    sounds, words = drawn(list(range(6)))
    learned, kinds = PairedInfoNCE(), torch.arange(6)
    with torch.no_grad():
        learned.log_scale.fill_(log_scale)
    loss, metrics = learned(sounds, words, kinds)
    assert metrics["temperature"].item() == pytest.approx(temperature)
    torch.testing.assert_close(loss, loss_at(temperature)(sounds, words, kinds)[0])


def test_the_temperature_is_learned():
    sounds, words = drawn(list(range(6)))
    learned, kinds = PairedInfoNCE(), torch.arange(6)
    loss, metrics = learned(sounds, words, kinds)
    assert metrics["temperature"].item() == pytest.approx(0.07) and learned.log_scale.shape == (1,)
    loss.backward()
    start, sides = learned.log_scale.item(), []
    for value in (start + 1e-2, start - 1e-2):
        with torch.no_grad():
            learned.log_scale.fill_(value)
        sides.append(learned(sounds, words, kinds)[0].item())
    assert learned.log_scale.grad.item() == pytest.approx((sides[0] - sides[1]) / 2e-2, rel=1e-2)


def test_similarities_stay_in_float32():
    sounds, words = (x.float() for x in drawn(list(range(6))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = PairedInfoNCE()(sounds, words, torch.arange(6))[0]
    assert torch.equal(inside, PairedInfoNCE()(sounds, words, torch.arange(6))[0])
    assert PairedInfoNCE()(sounds.bfloat16(), words.bfloat16(), torch.arange(6))[0].dtype == torch.float32


def build(seed=0, encoder=None, **changes):
    torch.manual_seed(seed)
    settings = ClapSettings(text_encoder=TEXT, projection_hidden=16, projection_size=8, **changes)
    config = AudioMosaicConfig(**SIZES, **(encoder or {}), objective=settings.model_dump())
    model = AudioMosaicForPreTraining(config)
    with torch.no_grad():  # a fresh CLS token is almost zero, and LayerNorm then blows rounding up
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.train()


def batch(model, clips=4, ratio=0.0):
    generator = torch.Generator().manual_seed(3)
    mask = random_mask(model.config.grid, clips, ratio=ratio, generator=generator)
    return [torch.randn(clips, 64, 128, generator=generator)], [mask]


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_the_objective_is_two_towers_then_the_loss(ratio):
    model = build()
    objective, (views, masks) = model.objective, batch(build(), ratio=ratio)
    assert isinstance(objective, ClapObjective)
    assert (objective.views_needed, objective.needs_texts, objective.compares_clips) == (1, True, True)
    found = model(views, masks, TEXTS)
    sounds, words = objective.project(model.encoder, views[0], masks[0]), objective.embed_texts(TEXTS)
    assert sounds.shape == words.shape == (4, 8)
    torch.testing.assert_close(found.loss, objective.loss(sounds, words, torch.arange(4))[0])
    assert found.metrics["different_texts"] == 0.75
    if ratio == 0.0:
        torch.testing.assert_close(sounds, objective.project(model.encoder, views[0]))
    pooled = model.encoder(views[0], ids_keep=masks[0].ids_keep).pooler_output
    for name, value in representation_metrics(pooled, 32).items():
        torch.testing.assert_close(found.metrics[name], value)
    assert found.metrics["kept_padding"] == 0.0


def test_both_towers_and_every_parameter_learn():
    model = build()
    model(*batch(model), TEXTS).loss.backward()
    levelled = (
        "objective.fc_norm.bias",
        "objective.text_encoder.blocks.norm.bias",
    )  # BatchNorm takes them off
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-6 or name in levelled, name


def test_hashes_of_texts():
    hashes = [text_hash(text) for text in ("dog", "dog ", "Dog", "dög", "\ud83d")]
    assert len(set(hashes)) == 5 and all(0 <= value < 2**63 for value in hashes)
    assert text_hash("dog") == 5750585903842312732


def test_chunks_change_nothing_but_memory():
    plain, cached = build(), build(cache_chunk=3)
    given = batch(plain, clips=4)
    losses, rows = [], []
    for model in (plain, cached):
        model.encoder.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        loss = model(*given, TEXTS).loss
        loss.backward()
        losses.append(loss.item())
    assert sorted(rows[:3]) == [1, 3, 4] and len(rows) == 5  # the chunks are read again in the backward pass
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    others = dict(cached.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(others[name].grad, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_costly_metrics_can_be_left_out():
    model = build()
    full = set(model(*batch(model), TEXTS).metrics)
    model.objective.measures = False
    assert full - set(model(*batch(model), TEXTS).metrics) == {"effective_rank", "lid_mean", "lid_var"}


def test_a_pooled_norm_is_not_repeated():
    assert isinstance(build(encoder={"final_norm": "layernorm"}).objective.fc_norm, torch.nn.Identity)
    assert isinstance(build().objective.fc_norm, torch.nn.LayerNorm)


def test_a_saved_folder_gives_the_same_loss(tmp_path):
    model = build().eval()
    with torch.no_grad():
        model.objective.loss.log_scale.fill_(1.5)
    model.save_pretrained(tmp_path)
    again = AudioMosaicForPreTraining.from_pretrained(tmp_path)
    assert again.config.objective["text_encoder"]["max_bytes"] == 32
    given = (*batch(model), TEXTS)
    assert torch.equal(model(*given).loss, again(*given).loss)
    with torch.no_grad():
        vectors = [one.objective.embed_texts(["a new text"]) for one in (model, again)]
        torch.testing.assert_close(*vectors)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda v, m: (v * 2, m * 2, TEXTS),
            "expected 1 view with 1 mask for the objective clap, found 2 views",
        ),
        (lambda v, m: (v, m, None), "expected a text for every clip for the objective clap, found none"),
        (lambda v, m: (v, m, TEXTS[:3]), "found 3 for 4 clips"),
        (lambda v, m: (v, m, [*TEXTS[:3], "x" * 33]), "texts of 1 to 32 bytes, found 33"),
    ],
)
def test_what_cannot_be_aligned(change, message):
    model = build()
    with pytest.raises(AlmosaicError, match=message):
        model(*change(*batch(model)))


def test_a_single_clip_and_a_large_chunk():
    model = build()
    with pytest.raises(AlmosaicError, match="at least 2 clips"):
        model(*batch(model, clips=1), ["dog"])
    with pytest.raises(AlmosaicError, match="cache_chunk of at most 4"):
        build(cache_chunk=5)(*batch(model), TEXTS)


def test_two_clips_are_enough():
    model = build()
    masks = [time_mask(model.config.grid, 2, ratio=0.5)]
    found = model([torch.randn(2, 64, 128)], masks, ["a", "b"])
    assert found.loss.isfinite() and "lid_mean" not in found.metrics
