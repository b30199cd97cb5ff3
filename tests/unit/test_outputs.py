"""Files of answers and embeddings: what is continued, skipped, refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from almosaic import outputs
from almosaic.errors import AlmosaicError


def nothing() -> None: ...


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model that answers with the file's name; returns the ids that it was asked about."""
    asked: list[str] = []

    def generate(model: Any, processor: Any, conversations: Any, **options: Any) -> Any:
        for row in conversations:
            asked.append(row["id"])
            bad = "bad" in row["id"]
            yield (
                {"id": row["id"], "error": "no audio"} if bad else {"id": row["id"], "prediction": row["id"]}
            )

    monkeypatch.setattr(outputs, "generate", generate)
    monkeypatch.setattr(outputs, "load_model", lambda *args, **kwargs: (None, None))
    monkeypatch.setattr(outputs, "AlmosaicForConditionalGeneration", type(None))
    return asked


def ask(out: Path | None, sources: list[str], prompt: str = "What?", **options: Any) -> list[str]:
    return outputs.generate_files("model", sources, prompt, out, report=print, progress=nothing, **options)


def test_an_interrupted_file_is_continued(answering: list[str], tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    first = json.dumps({"id": "a", "prompt": "What?", "prediction": "x"})
    out.write_text(first + '\n{"id": "b", "prom')
    assert ask(out, ["a", "b", "c"]) == []
    assert answering == ["b", "c"]
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", "b", "c"]
    assert out.read_text().startswith(first)


def test_a_failed_clip_is_listed_and_tried_again(answering: list[str], tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    assert ask(out, ["a", "bad"]) == ["no audio"]
    assert ask(out, ["a", "bad"]) == ["no audio"]
    assert answering == ["a", "bad", "bad"]


def test_answers_to_another_prompt_are_not_mixed(answering: list[str], tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    ask(out, ["a"])
    with pytest.raises(AlmosaicError, match="holds answers to 'What\\?', not to 'Why\\?'"):
        ask(out, ["a"], prompt="Why?")
    out.write_text("id,answer\n")
    with pytest.raises(AlmosaicError, match=r"answers\.jsonl:1 is not an answer"):
        ask(out, ["a"])


def test_answers_are_shown_without_a_file(answering: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ask(None, ["a", "b"])
    assert capsys.readouterr().out == "a\ta\nb\tb\n"


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".jsonl"])
def test_embeddings_in_every_format(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def embed(
        model: Any, sources: Any, layer: Any, batch_size: int, failures: list[Any], pooling: str
    ) -> Any:
        assert pooling == "cls"
        failures.append(("bad", "bad: too short"))
        yield from ((name, np.full(3, i, np.float32)) for i, name in enumerate(sources))

    monkeypatch.setattr(outputs, "embed", embed)
    monkeypatch.setattr(outputs, "load_model", lambda *args, **kwargs: (None, None))
    out = tmp_path / f"x{suffix}"
    assert outputs.embed_files("model", ["a", "b"], out, pooling="cls", progress=nothing) == [
        "bad: too short"
    ]
    if suffix == ".npz":
        loaded = np.load(out)
        ids, vectors = loaded["ids"].tolist(), loaded["embeddings"]
    elif suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(out, "numpy") as file:
            ids, vectors = json.loads(file.metadata()["ids"]), file.get_tensor("embeddings")
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        ids, vectors = [row["id"] for row in rows], np.array([row["embedding"] for row in rows])
    assert ids == ["a", "b"]
    np.testing.assert_array_equal(vectors, [[0, 0, 0], [1, 1, 1]])


def test_folders_are_opened_and_missing_files_named(tmp_path: Path) -> None:
    for name in ("b.wav", "a.FLAC", "notes.txt"):
        (tmp_path / name).touch()
    assert outputs.audio_files([str(tmp_path), str(tmp_path / "b.wav")]) == [
        str(tmp_path / "a.FLAC"),
        str(tmp_path / "b.wav"),
    ]
    with pytest.raises(AlmosaicError, match="no file or folder"):
        outputs.audio_files([str(tmp_path / "c.wav")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(AlmosaicError, match="expected audio files"):
        outputs.audio_files([str(tmp_path / "empty")])
