"""Rows for training: stateless crops and questions, joined sources, and the rule for bad clips."""

import sys
from pathlib import Path

import numpy as np
import pytest

from almosaic.alm import AlmosaicConfig, AlmosaicProcessor
from almosaic.alm.processing import audio_token_cost
from almosaic.data.chat_files import ChatFileDataset
from almosaic.data.clips import BadClips, FileClips, JoinedClips, ManifestClips, SceneClips
from almosaic.data.datasets import CaptionDataset, ChatDataset, PretrainDataset
from almosaic.data.formats import question
from almosaic.data.manifest import ManifestRow
from almosaic.data.scene_chat import (
    CAPTION_PROMPTS,
    TIMELINE_PROMPTS,
    SceneChatDataset,
    SceneChatSettings,
    SceneTextDataset,
    SceneTextSettings,
    training_pool,
)
from almosaic.errors import AlmosaicError, AudioError
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.scenes.bank import SyntheticBank, open_bank
from almosaic.scenes.scene import SceneSettings

sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers_tiny import QUERIES, WINDOW_FRAMES, tiny_tokenizer

RATE = 16_000
TEMPLATES = ("presence", "first", "choice", "count")


class Numbered:
    """Clip i is i + 0.1 epoch, constant; some cannot be read."""

    def __init__(self, clips, bad=(), name="clip"):
        self.clips, self.bad, self.name = clips, bad, name

    def __len__(self):
        return self.clips

    def waveform(self, index, epoch):
        if index in self.bad:
            raise AudioError(f"{self.name} {index}: damaged; fetch it again")
        return np.full(800, index + 0.1 * epoch, np.float32)

    def fingerprint(self):
        return f"{self.name} {self.clips} {self.bad}"


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    """A 4-second file in which the value tells the time."""
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path_factory.mktemp("clips") / "ramp.wav"
    soundfile.write(path, (np.arange(4 * RATE) / (4 * RATE)).astype(np.float32), RATE, subtype="FLOAT")
    return path


def test_crops_depend_on_seed_epoch_and_clip_alone(ramp):
    clips = FileClips([ramp, ramp], crop_seconds=1.0, seed=3)
    first, other_clip, other_epoch = clips.waveform(0, 0), clips.waveform(1, 0), clips.waveform(0, 1)
    assert len(first) == RATE
    assert len({first[0], other_clip[0], other_epoch[0]}) == 3
    assert np.array_equal(FileClips([ramp, ramp], 1.0, seed=3).waveform(0, 0), first)
    assert FileClips([ramp, ramp], 1.0, seed=4).waveform(0, 0)[0] != first[0]


def test_crops_cover_the_whole_file_and_short_files_stay_whole(ramp):
    clips = FileClips([ramp], crop_seconds=1.0)
    starts = [clips.waveform(0, epoch)[0] * 4 for epoch in range(200)]
    assert min(starts) < 0.1 and 2.9 < max(starts) <= 3.0
    assert len(FileClips([ramp], crop_seconds=9.0).waveform(0, 0)) == 4 * RATE
    assert len(FileClips([ramp]).waveform(0, 5)) == 4 * RATE


def test_a_fingerprint_changes_with_the_files(ramp, tmp_path):
    row = ManifestRow(id="a", audio="ramp.wav", path=ramp)
    before = ManifestClips([row]).fingerprint()
    assert ManifestClips([row]).fingerprint() == before
    assert ManifestClips([row], crop_seconds=1.0).fingerprint() != before
    copy = tmp_path / "ramp.wav"
    copy.write_bytes(ramp.read_bytes())
    assert FileClips([copy]).fingerprint() != before
    first = FileClips([copy]).fingerprint()
    copy.write_bytes(ramp.read_bytes() + b"\0")
    assert FileClips([copy]).fingerprint() != first


def test_lengths_come_from_headers_and_plans(ramp, monkeypatch, scenes):
    monkeypatch.setattr("almosaic.data.clips.load_audio", lambda *_, **__: pytest.fail("decoded"))
    row = ManifestRow(id="a", audio="ramp.wav", path=ramp)
    known = ManifestRow(id="b", audio="gone.wav", path=ramp.parent / "gone.wav", duration_seconds=7.5)
    stored = JoinedClips([FileClips([ramp, ramp], 1.5), ManifestClips([row, known])])
    assert [stored.seconds(index) for index in range(4)] == [1.5, 1.5, 4.0, 7.5]
    bank, settings, pool = scenes
    fresh = training_pool.__wrapped__(bank, settings, 24, 5)
    assert SceneClips(fresh, bank).seconds(3) == SceneClips([pool[3]], bank).seconds(0) == 5.0
    assert not fresh._scenes, "no scene is composed to learn how long it is"
    with pytest.raises(AudioError, match="no such file"):
        FileClips(["gone.wav"]).seconds(0)


def test_a_stage_may_allow_longer_clips(ramp):
    joined = JoinedClips([Numbered(1), FileClips([ramp])])
    joined.allow_seconds(3.0)
    with pytest.raises(AudioError, match="longer than the limit of 3 s"):
        joined.waveform(1, 0)
    joined.allow_seconds(4.0)
    assert len(joined.waveform(1, 0)) == 4 * RATE


def test_lengths_of_rows_count_clips_cues_and_words(ramp, processor, scenes):
    bank, settings, _ = scenes
    pool = training_pool.__wrapped__(bank, settings, 24, 5)
    asked = SceneChatDataset(pool, bank, SceneChatSettings(captions=0.0), 7, settings.templates)
    files = ChatFileDataset(chat_file(str(ramp), "gone.wav"))
    data = ChatDataset([files, asked], processor, attempts=2)
    lengths = data.lengths()
    assert len(pool._scenes) <= 1, "one conversation stands for the words of all"
    config = AlmosaicConfig(audio_config={"window_frames": WINDOW_FRAMES}, projector={"queries": QUERIES})
    words = len(processor.encode(files[0]["messages"], [10]).input_ids) - QUERIES
    cost = audio_token_cost(398, config, processor.tokenizer)
    assert lengths[0] == words + cost == len(data[0]["encoded"].input_ids)
    assert lengths[1] == 0 and len(set(lengths[2:])) == 1
    true = np.array([len(data[index]["encoded"].input_ids) for index in range(2, 26)])
    assert np.abs(true - lengths[2]).max() < 0.2 * lengths[2]


def test_joined_sources_are_numbered_through():
    joined = JoinedClips([Numbered(3), Numbered(2)])
    assert len(joined) == 5
    assert [joined.waveform(index, 0)[0] for index in range(5)] == [0, 1, 2, 0, 1]
    assert joined.fingerprint() != JoinedClips([Numbered(2), Numbered(3)]).fingerprint()


def test_the_next_clip_takes_the_place_of_a_bad_one_and_both_are_named(caplog):
    source = Numbered(100, bad=(4, 5, 99))
    bad = BadClips(100, limit_share=0.03)
    rows = PretrainDataset(source, bad.attempts)
    row = rows[4]
    assert row["clip_index"] == 6 and row["waveform"][0] == 6
    assert [index for index, _ in row["bad_clips"]] == [4, 5]
    assert rows[99]["clip_index"] == 0
    bad.note(row["bad_clips"])
    bad.note(row["bad_clips"])
    assert caplog.text.count("skipped clip 4, the next one takes its place: clip 4: damaged") == 1
    bad.note(rows[99]["bad_clips"])
    with pytest.raises(
        AlmosaicError, match=r"4 of 100 clips cannot be used, more than .* 0.03; the last: gone"
    ):
        bad.note([(50, "gone")])


def test_when_nothing_can_be_read_the_run_stops():
    bad = BadClips(1000, limit_share=0.01)
    rows = PretrainDataset(Numbered(1000, bad=range(1000)), bad.attempts)
    row = rows[3]
    assert row["waveform"] is None and len(row["bad_clips"]) == 11
    with pytest.raises(AlmosaicError, match="11 of 1000 clips"):
        bad.note(row["bad_clips"])


def test_captions_take_turns_and_depend_on_the_epoch(ramp):
    rows = [
        ManifestRow(id="a", audio="a.wav", path=ramp, captions=("one", "two")),
        ManifestRow(id="b", audio="b.wav", path=ramp),
    ]
    data = CaptionDataset(rows, seed=1)
    assert len(data) == 1
    answers, prompts = set(), set()
    for epoch in range(30):
        data.set_epoch(epoch)
        user, assistant = data[0]["messages"]
        assert user == question(user["content"][-1]["text"])
        prompts.add(user["content"][-1]["text"])
        answers.add(assistant["content"])
    assert answers == {"one", "two"} and prompts == set(CAPTION_PROMPTS)
    with pytest.raises(AlmosaicError, match="with captions, found none among 1"):
        CaptionDataset(rows[1:], seed=1)


def chat_file(*audios):
    message = {"role": "assistant", "content": "yes"}
    return [{"id": str(n), "messages": [question("?"), message], "audios": [a]} for n, a in enumerate(audios)]


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    extractor = AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES)
    return AlmosaicProcessor(extractor, tiny_tokenizer(tmp_path_factory.mktemp("tok")), queries=QUERIES)


def test_chat_rows_share_clips_and_parts_are_joined(ramp, processor):
    files = ChatFileDataset(chat_file(str(ramp), "gone.wav", str(ramp)))
    assert len(files.source) == 2 and [row["clips"] for row in files] == [[0], [1], [0]]
    captions = CaptionDataset([ManifestRow(id="a", audio="a", path=ramp, captions=("x",))], seed=0)
    joined = ChatDataset([captions, files], processor, attempts=2)
    assert len(joined) == 4 and len(joined.source) == 3
    item = joined[1]
    assert len(item["waveforms"][0]) == 4 * RATE and item["encoded"].windows == [7]
    replaced = joined[2]
    assert replaced["clip_index"] == 3 and replaced["bad_clips"][0][0] == 2
    assert replaced["bad_clips"][0][1].startswith("row 1: gone.wav: no such file")


class Cached:
    def frames(self, index):
        return [398, 0][index]

    def __getitem__(self, index):
        return np.zeros((7, 2, 2, 3), np.float16)


def test_with_a_cache_no_audio_is_read(ramp, processor):
    files = ChatFileDataset(chat_file(str(ramp), "gone.wav"))
    data = ChatDataset([files], processor, attempts=2, cache=Cached())
    item = data[0]
    assert "waveforms" not in item and item["features"][0].shape == (7, 2, 2, 3)
    assert data[1]["clip_index"] == 0 and "no features" in data[1]["bad_clips"][0][1]
    assert data.lengths() == [len(item["encoded"].input_ids), 0]


def test_a_row_that_does_not_fit_is_named_with_both_numbers_and_nothing_is_cut(ramp, processor):
    rows = chat_file(str(ramp), str(ramp), str(ramp))
    rows[1]["messages"] = [question("? " * 40), rows[1]["messages"][1]]
    rows[2]["messages"] = [question("?", clips=2), rows[2]["messages"][1]]
    whole = ChatDataset([ChatFileDataset(rows)], processor, attempts=3)
    long = len(whole[1]["encoded"].input_ids)
    data = ChatDataset([ChatFileDataset(rows)], processor, context=long - 1, attempts=3)
    item = data[1]
    assert item["clip_index"] == 0 and [index for index, _ in item["bad_clips"]] == [1, 2]
    (_, first), (_, second) = item["bad_clips"]
    assert first.startswith(f"row 1: {long} tokens, but the language model reads {long - 1} at most")
    assert second.startswith("row 2: the conversation has 2 audio placeholders but 1 clips")
    assert data.lengths() == [len(item["encoded"].input_ids), 0, 0]
    assert len(ChatDataset([ChatFileDataset(rows)], processor, context=long)[1]["encoded"].input_ids) == long


def test_when_no_row_fits_the_run_stops(ramp, processor):
    bad = BadClips(300, limit_share=0.01, unit="row")
    data = ChatDataset([ChatFileDataset(chat_file(*[str(ramp)] * 300))], processor, 5, bad.attempts)
    item = data[7]
    assert item["encoded"] is None
    with pytest.raises(AlmosaicError, match=r"4 of 300 rows cannot be used, .*; the last: row 10: \d+ tok"):
        bad.note(item["bad_clips"])


@pytest.fixture(scope="module")
def scenes():
    bank = open_bank(SyntheticBank(clips_per_kind=6), "train")
    settings = SceneSettings(duration_seconds=5.0, templates=TEMPLATES)
    return bank, settings, training_pool(bank, settings, 24, 0)


def test_stages_share_the_composed_scenes(scenes):
    bank, settings, pool = scenes
    assert training_pool(bank, settings, 24, 0) is pool


def test_scene_questions_are_fresh_in_each_epoch_and_stateless(scenes):
    bank, settings, pool = scenes
    data = SceneChatDataset(pool, bank, SceneChatSettings(captions=0.0), 7, settings.templates)
    first = [data[index] for index in range(24)]
    data.set_epoch(1)
    second = [data[index] for index in range(24)]
    assert sum(a["messages"] != b["messages"] for a, b in zip(first, second, strict=True)) > 12
    again = SceneChatDataset(pool, bank, SceneChatSettings(captions=0.0), 7, settings.templates)
    assert [again[index] for index in reversed(range(24))] == first[::-1]
    assert [row["clips"] for row in first] == [[index] for index in range(24)]
    assert not any(row["messages"][0]["content"][-1]["text"] in CAPTION_PROMPTS for row in first)


def test_shares_and_weights_of_what_is_asked(scenes):
    bank, _, pool = scenes
    mixed = SceneChatSettings(captions=0.5, templates={"presence": 3.0, "count": 1.0})
    data = SceneChatDataset(pool, bank, mixed, 7)
    asked = []
    for epoch in range(20):
        data.set_epoch(epoch)
        asked += [data[index]["messages"] for index in range(24)]
    prompts = [messages[0]["content"][-1]["text"] for messages in asked]
    share = sum(prompt in CAPTION_PROMPTS for prompt in prompts) / len(prompts)
    assert share == pytest.approx(0.5, abs=0.08)
    answers = [
        messages[1]["content"]
        for messages in asked
        if messages[0]["content"][-1]["text"] not in CAPTION_PROMPTS
    ]
    assert sum(answer in ("yes", "no") for answer in answers) / len(answers) > 0.5
    with pytest.raises(AlmosaicError, match="no templates are given"):
        SceneChatDataset(pool, bank, SceneChatSettings(templates={}), 7)


def test_a_text_stands_for_the_clip_and_captions_are_never_copied(scenes):
    bank, settings, pool = scenes
    text = SceneTextSettings(captions=0.3, timelines=0.3, timeline_contexts=0.5, slots=16)
    data = SceneTextDataset(pool, bank, text, 7, settings.templates)
    timelines = questions = 0
    for epoch in range(4):
        data.set_epoch(epoch)
        for index in range(24):
            row = data[index]
            prompt = row["messages"][0]["content"][-1]["text"]
            as_timeline = len(row["context"].split()) == 16
            if prompt in CAPTION_PROMPTS:
                assert as_timeline
            elif prompt in TIMELINE_PROMPTS:
                assert not as_timeline and len(row["messages"][1]["content"].split()) == 16
            else:
                timelines, questions = timelines + as_timeline, questions + 1
    assert 0.25 < timelines / questions < 0.75


def test_scene_audio_is_the_same_in_every_epoch_and_its_hash_follows_the_pool(scenes):
    bank, settings, pool = scenes
    clips = SceneClips(pool, bank)
    assert np.array_equal(clips.waveform(2, 0), clips.waveform(2, 9))
    assert len(clips.waveform(0, 0)) == 5 * RATE
    other = SceneClips(training_pool(bank, settings, 24, 1), bank)
    assert clips.fingerprint() != other.fingerprint()
