"""Chat files: one number for each clip however many rows speak of it, in files and in archives."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from torch.utils.data import DataLoader

from almosaic.data.chat_files import ChatFileDataset
from almosaic.data.formats import ChatRows
from almosaic.data.shards import ShardClips
from almosaic.errors import AlmosaicError, AudioError

soundfile = pytest.importorskip("soundfile")
RATE = 16_000


def audio(number, seconds=0.2):
    """A clip whose samples are all number / 100."""
    file = io.BytesIO()
    soundfile.write(file, np.full(round(seconds * RATE), number / 100, np.float32), RATE, format="WAV")
    return file.getvalue()


def heard(clips):
    return [round(float(clips.waveform(index, 0).mean()) * 100) for index in range(len(clips))]


def row(*names):
    tags = "<audio>" * len(names)
    return {"query": f"{tags}Which?", "response": "This one.", "audios": list(names)}


def write(path, *rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


ROWS = [row("b.wav", "a.wav"), row(), row("a.wav"), row("c.wav", "b.wav", "c.wav"), row("d.wav")]


@pytest.fixture
def clips(tmp_path):
    for number, name in enumerate("abc", start=1):
        (tmp_path / f"{name}.wav").write_bytes(audio(number))
    return tmp_path


def pack(path, **files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"sounds/{name}.wav")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_a_clip_of_several_rows_is_one_clip(clips):
    data = ChatFileDataset(ChatRows(write(clips / "a.jsonl", *ROWS)))
    assert [data[index]["clips"] for index in range(5)] == [[0, 1], [], [1], [2, 0, 2], [3]]
    assert [data.source.name(index) for index in range(4)] == [str(clips / f"{name}.wav") for name in "bacd"]
    assert [data.source.row(index) for index in range(4)] == [0, 0, 3, 4]
    assert [round(float(data.source.waveform(clip, 0).mean()) * 100) for clip in range(3)] == [2, 1, 3]
    assert data.source.seconds(2) == pytest.approx(0.2)
    with pytest.raises(AudioError, match=r"d\.wav: no such file"):
        data.source.waveform(3, 0)


def test_the_same_rows_in_memory_give_the_same(clips):
    rows = ChatRows(write(clips / "a.jsonl", *ROWS))
    stored, listed = ChatFileDataset(rows), ChatFileDataset(list(rows))
    assert [stored[index] for index in range(5)] == [listed[index] for index in range(5)]
    assert stored.source.fingerprint() == listed.source.fingerprint()


def test_a_fingerprint_follows_the_clips_and_not_the_words(clips):
    path = write(clips / "a.jsonl", *ROWS)
    before = ChatFileDataset(ChatRows(path)).source.fingerprint()
    write(path, *({**one, "response": "Another."} for one in ROWS))
    assert ChatFileDataset(ChatRows(path)).source.fingerprint() == before
    write(path, *reversed(ROWS))
    assert ChatFileDataset(ChatRows(path)).source.fingerprint() != before
    write(path, *ROWS)
    (clips / "c.wav").write_bytes(audio(3, seconds=0.3))
    assert ChatFileDataset(ChatRows(path)).source.fingerprint() != before


def test_rows_without_any_audio(tmp_path):
    data = ChatFileDataset(ChatRows(write(tmp_path / "a.jsonl", row(), row())))
    assert len(data.source) == 0 and [data[0]["clips"], data[1]["clips"]] == [[], []]


def test_every_row_is_checked_before_any_is_learned(clips):
    path = write(clips / "a.jsonl", *ROWS, {"query": "<audio>Which?", "response": "?"})
    with pytest.raises(AlmosaicError, match=r"a\.jsonl:6: 1 <audio> tags"):
        ChatFileDataset(ChatRows(path))


def test_workers_and_copies_read_the_same(clips):
    data = ChatFileDataset(ChatRows(write(clips / "a.jsonl", *ROWS)))
    alone = [data[index] for index in range(5)]
    loader = DataLoader(data, batch_size=2, num_workers=2, collate_fn=list, multiprocessing_context="fork")
    assert [one for batch in loader for one in batch] == alone
    copy = pickle.loads(pickle.dumps(data))
    assert [
        copy[index] for index in range(5)
    ] == alone and copy.source.fingerprint() == data.source.fingerprint()


def test_clips_in_archives_are_found_by_their_names(clips):
    first = pack(clips / "1.tar", x=audio(9), a=audio(1))
    second = pack(clips / "2.tar", b=audio(2), c=audio(3))
    rows = [row("./b.wav"), row("a.wav", "c.wav"), row("b.wav", "d.wav")]
    path = write(clips / "a.jsonl", *rows)
    data = ChatFileDataset(ChatRows(path, "./sounds"), ShardClips([first, second]))
    assert [data[index]["clips"] for index in range(3)] == [[0], [1, 2], [0, 3]]
    assert [round(float(data.source.waveform(clip, 0).mean()) * 100) for clip in range(3)] == [2, 1, 3]
    assert data.source.seconds(0) == pytest.approx(0.2)
    with pytest.raises(AudioError, match=r"sounds/d\.wav: in none of the 2 archives.* as sounds/x\.wav"):
        data.source.waveform(3, 0)
    inline = write(clips / "b.jsonl", row("data:audio/wav;base64,AAAA"))
    inside = ChatFileDataset(ChatRows(inline, "sounds"), ShardClips([first])).source
    assert inside.stored(0) == "data:audio/wav;base64,AAAA"


def test_a_name_in_two_archives_is_an_error(clips):
    archives = ShardClips([pack(clips / "1.tar", a=audio(1), b=audio(2)), pack(clips / "2.tar", a=audio(3))])
    assert archives.find("sounds/b.wav") == 1 and archives.find("b.wav") is None
    assert archives.member(1) == "sounds/b.wav"
    with pytest.raises(AudioError, match=r"expected one archive .* found .*1\.tar: sounds/a.wav, .*2\.tar"):
        archives.find("sounds/a.wav")
