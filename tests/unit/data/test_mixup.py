"""Mixtures of waveforms: who is mixed, how the second clip fits the first, what the collator gives."""

import numpy as np
import torch

from almosaic.data.mixup import Mixup, MixupCollator, MixupDataset, centred, mix
from almosaic.errors import AudioError


class Steps:
    """Clip i holds the number i, 400 + i samples long; some cannot be read."""

    def __init__(self, clips=200, bad=()):
        self.clips, self.bad = clips, bad

    def __len__(self):
        return self.clips

    def waveform(self, index, epoch):
        if index in self.bad:
            raise AudioError(f"clip {index} is damaged")
        return np.full(400 + index, index, dtype=np.float32)

    def fingerprint(self):
        return "steps"


def dataset(rate=0.8, **options):
    return MixupDataset(Steps(**options), attempts=3, mixup=Mixup(rate=rate), parts=(1, "stage"))


def partners(rows):
    return [row.get("partner_index") for row in rows]


def test_a_share_of_the_clips_meets_a_uniformly_drawn_partner():
    rows = [dataset()[index] for index in range(200)]
    mixed = [row for row in rows if "partner_index" in row]
    assert 140 < len(mixed) < 180
    assert len({row["partner_index"] for row in mixed}) > 80
    assert all((row["partner_waveform"] == row["partner_index"]).all() for row in mixed)
    assert partners([dataset(rate=0.0)[index] for index in range(50)]) == [None] * 50


def test_partners_depend_on_the_epoch_and_the_clip_alone():
    first, second = dataset(), dataset()
    chosen = partners([first[index] for index in range(50)])
    assert partners([second[index] for index in reversed(range(50))])[::-1] == chosen
    second.set_epoch(1)
    assert partners([second[index] for index in range(50)]) != chosen


def test_a_bad_partner_gives_way_to_the_next_and_is_reported():
    rows = [dataset(rate=1.0, clips=20, bad=(4,))[index] for index in range(20)]
    assert {4} == {clip for row in rows for clip, _ in row["bad_clips"]}
    assert 4 not in partners(rows) and None not in partners(rows)


def test_the_collator_stacks_partners_beside_their_rows():
    rows = [dataset()[index] for index in range(20)]
    batch = MixupCollator()(rows)
    mixed = [place for place, row in enumerate(rows) if "partner_index" in row]
    assert batch["mixed_rows"].tolist() == mixed
    for place, index, waveform, length in zip(
        *(range(len(mixed)), batch["partner_index"], batch["partner_waveforms"], batch["partner_lengths"]),
        strict=True,
    ):
        assert length == 400 + index and (waveform[:length] == index).all()
        assert rows[mixed[place]]["partner_index"] == index
    assert "mixed_rows" not in MixupCollator()([dataset(rate=0.0)[0]])


def test_a_mixture_has_the_length_of_its_first_clip():
    first = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    second = torch.tensor([[4.0, 4, 0], [4, 4, 4]])
    mixed = mix(first, torch.tensor([4, 2]), second, torch.tensor([0.75, 0.5]))
    assert mixed.tolist() == [[1.75, 1.75, 0.75, 0.75], [2.5, 2.5, 0, 0]]


def test_the_mean_is_taken_over_a_clips_own_samples():
    found = centred(torch.tensor([[1.0, 3, 9, 9], [2, 4, 6, 8]]), torch.tensor([2, 4]))
    assert found.tolist() == [[-1, 1, 0, 0], [-3, -1, 1, 3]]
