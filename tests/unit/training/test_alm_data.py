"""What the data of an audio-language stage opens: files of any form, archives, weights, and mistakes."""

import io
import json
import tarfile

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from almosaic.data.formats import question
from almosaic.data.scene_chat import SceneTextSettings
from almosaic.errors import AlmosaicError
from almosaic.scenes.bank import SyntheticBank, open_bank
from almosaic.scenes.scene import SceneSettings
from almosaic.training.alm_data import ChatSettings, open_chat_data

soundfile = pytest.importorskip("soundfile")
RATE = 16_000


def audio(seconds):
    file = io.BytesIO()
    soundfile.write(file, np.full(round(seconds * RATE), 0.1, np.float32), RATE, format="WAV")
    return file.getvalue()


def opened(composed=(None, None), **settings):
    return open_chat_data(TypeAdapter(ChatSettings).validate_python(settings), *composed, 0, "align")


def openaqa(*names):
    rows = [{"instruction": "What?", "input": "", "audio_id": name, "output": name} for name in names]
    return json.dumps(rows)


def test_files_of_several_forms_in_one_list_with_a_root(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.wav").write_bytes(audio(0.5))
    (tmp_path / "a.json").write_text(openaqa("a.wav", "b.wav"))
    (tmp_path / "b.csv").write_text("audio,caption\na.wav,A tone.\n")
    paths = [str(tmp_path / name) for name in ("a.json", "b.csv")]
    data = opened(name="chat", path=paths, audio_root=str(tmp_path / "clips"))
    assert [row["clips"] for row in map(data.__getitem__, range(3))] == [[0], [1], [0]]
    assert data[1]["messages"] == [question("What?"), {"role": "assistant", "content": "b.wav"}]
    assert len(data.source.waveform(0, 0)) == RATE // 2
    asked = opened(name="chat", path=paths[1], format="captions", prompt="Say what you hear.")
    assert asked[0]["messages"][0] == question("Say what you hear.")


def test_clips_are_looked_up_in_archives_by_pattern(tmp_path):
    for number in (1, 2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            data = audio(number / 4)
            member = tarfile.TarInfo(f"deep/{number}.wav")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (tmp_path / "a.json").write_text(openaqa("2.wav", "./1.wav"))
    settings = {"name": "chat", "path": str(tmp_path / "a.json"), "archives": str(tmp_path / "*.tar")}
    data = opened(audio_root="deep", **settings)
    assert [data.source.seconds(clip) for clip in (0, 1)] == pytest.approx([0.5, 0.25])
    (tmp_path / "a.json").write_text(openaqa("deep/2.wav"))
    assert opened(**settings).source.seconds(0) == pytest.approx(0.5)
    with pytest.raises(AlmosaicError, match=r"x\.tar: expected tar archives, found no file"):
        opened(**settings | {"archives": [str(tmp_path / "x.tar")]})


def test_every_kind_of_data_has_a_weight(tmp_path):
    (tmp_path / "a.wav").write_bytes(audio(0.5))
    (tmp_path / "a.json").write_text(openaqa(*("a.wav",) * 10))
    rows = [{"id": str(n), "audio": "a.wav", "captions": ["A tone."]} for n in range(4)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scenes = SceneSettings(duration_seconds=3.0, templates=("presence",))
    composed = open_bank(SyntheticBank(clips_per_kind=3), "train"), scenes
    chat = {"name": "chat", "path": str(tmp_path / "a.json")}
    captions = {"name": "captions", "manifest": str(tmp_path / "manifest.jsonl")}
    pool = {"name": "scenes", "scenes": 6, "captions": 0.0}
    for settings, count in ((chat, 10), (captions, 4), (pool, 6)):
        for weight in (0.5, 1, 2.5):
            data = opened(composed, **settings, weight=weight)
            assert len(data) == round(weight * count)
            assert len(data.source) == (1 if settings is chat else count)
    twice = opened(composed, **pool, weight=2)
    assert any(twice[index]["messages"] != twice[index + 6]["messages"] for index in range(6))
    assert [twice[index]["clips"] for index in (2, 8)] == [[2], [2]]
    with pytest.raises(ValidationError):
        opened(**chat, weight=0)
    with pytest.raises(ValidationError):
        SceneTextSettings(weight=2.0)
    with pytest.raises(AlmosaicError, match=r"weight 0\.01 of 10 rows leaves none"):
        opened(**chat, weight=0.01)


def test_a_wrong_file_is_one_line(tmp_path):
    chat = {"name": "chat", "path": str(tmp_path / "a.jsonl")}
    with pytest.raises(AlmosaicError, match=r"a\.jsonl: cannot be read"):
        opened(**chat)
    (tmp_path / "a.jsonl").write_text('{"wav": "a.wav"}\n')
    for form, message in (("auto", "expected a record of a known format"), ("slam", "the format slam needs")):
        with pytest.raises(AlmosaicError, match=message) as caught:
            opened(**chat, format=form)
        assert str(caught.value).startswith(f"{tmp_path / 'a.jsonl'}:1: ") and "\n" not in str(caught.value)
    for wrong in ({"format": "salmon"}, {"path": []}, {"archives": []}, {"audio": "x"}):
        with pytest.raises(ValidationError):
            opened(**chat | wrong)
