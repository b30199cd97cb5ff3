import numpy as np
import pytest

from almosaic.data.short_clips import JoinedShortClips
from almosaic.errors import AudioError

RATE = 16_000


class Constants:
    """Clip i is `seconds[i]` long and holds the number i + 1 everywhere; clips in `bad` cannot be read."""

    def __init__(self, seconds, bad=()):
        self.seconds, self.bad = seconds, bad

    def __len__(self):
        return len(self.seconds)

    def waveform(self, index, epoch):
        if index in self.bad:
            raise AudioError(f"clip {index}")
        return np.full(round(self.seconds[index] * RATE), index + 1, np.float32)

    def fingerprint(self):
        return "constants"


def joined(seconds, bad=(), seed=0):
    return JoinedShortClips(Constants(seconds, bad), 1.0, 2.0, seed)


def test_a_long_clip_stays_as_it_is():
    assert len(joined([3.0, 0.5]).waveform(0, 0)) == 3 * RATE


def test_a_short_clip_comes_first_and_others_follow_up_to_the_length():
    clips = joined([0.25] * 20)
    waveform = clips.waveform(7, 0)
    assert len(waveform) == RATE
    first, *others = waveform[:: RATE // 4].tolist()
    assert first == 8 and 8 not in others


def test_the_last_of_the_joined_clips_is_cut():
    assert len(joined([0.5, 9.0]).waveform(0, 0)) == 2 * RATE


def test_the_choice_depends_on_seed_epoch_and_clip_alone():
    first = joined([0.1] * 50).waveform(3, 1)
    assert np.array_equal(first, joined([0.1] * 50).waveform(3, 1))
    assert not np.array_equal(first, joined([0.1] * 50).waveform(3, 2))
    assert not np.array_equal(first, joined([0.1] * 50, seed=1).waveform(3, 1))


def test_bad_neighbours_are_passed_over_and_a_bad_clip_is_not():
    clips = joined([0.25] * 4, bad={1, 2})
    assert set(clips.waveform(0, 0).tolist()) == {1.0, 4.0}
    with pytest.raises(AudioError, match="clip 1"):
        clips.waveform(1, 0)


@pytest.mark.parametrize("clips", [joined([0.3]), joined([0.3, 0.3, 0.3], bad={1, 2})])
def test_a_clip_alone_is_repeated(clips):
    assert set(clips.waveform(0, 0).tolist()) == {1.0} and len(clips.waveform(0, 0)) >= RATE
