"""How conversations become batches: order, when clips are decoded, what is wrong with one."""

import pytest
import soundfile
from helpers_tiny import QUERIES, answered, question, tiny_model, waveform

from almosaic import inference
from almosaic.alm import processing
from almosaic.conversations import expected_length, longest_first, prepare
from almosaic.errors import AlmosaicError
from almosaic.inference import generate


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("conversations"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Paths of clips of 1, 2 and 3 windows."""
    folder = tmp_path_factory.mktemp("clips")
    paths = {}
    for windows, seconds in ((1, 0.5), (2, 1.0), (3, 1.5)):
        paths[windows] = str(folder / f"{windows}.wav")
        soundfile.write(paths[windows], waveform(seconds), 16_000)
    return paths


def about(name, path, text="what"):
    return {"id": name, "messages": question(text), "audios": [path]}


def test_the_expected_length_is_the_true_one_without_decoding(built, clips, monkeypatch):
    model, processor = built
    rows = [about(str(windows), path) for windows, path in clips.items()]
    rows.append({"messages": question("what", 2), "audios": [(waveform(1.5), 16_000), clips[1]]})
    true = [len(prepare(model, processor, row, 1).encoded.input_ids) for row in rows]
    monkeypatch.setattr(processing, "load_audio", None)
    assert [expected_length(processor, row) for row in rows] == true
    assert expected_length(processor, about("x", "nowhere.wav")) > QUERIES  # its size is a guess
    assert expected_length(processor, {"audios": []}) == 0
    assert expected_length(processor, {"messages": question("what", 2), "audios": [clips[1]]}) == 0


def test_longest_first_and_the_same_clips_side_by_side(built, clips):
    _, processor = built
    rows = [
        about("short", clips[1]),
        about("three", clips[3]),
        about("two", clips[2], "which sound comes first, the bell or the dog"),
        about("three again", clips[3], "is there rain in the recording? answer yes or no"),
        {"id": "wrong"},
        {"id": "text", "messages": question("what", 0)},
    ]
    order = [row["id"] for _, row in longest_first(processor, list(enumerate(rows)))]
    assert order == ["three again", "three", "two", "short", "text", "wrong"]


def test_clips_are_decoded_when_their_batch_is_due(built, clips, monkeypatch):
    decoded, waiting = [], []
    load = processing.load_audio

    def counted(source, **limits):
        decoded.append(source)
        return load(source, **limits)

    def answer(rows, *rest):
        waiting.append(len(decoded))
        return ((row.index, {"id": row.id, "prediction": ""}) for row in rows)

    monkeypatch.setattr(processing, "load_audio", counted)
    monkeypatch.setattr(inference, "_answer_batch", answer)
    rows = [about(str(index), clips[1 + index % 3]) for index in range(24)]
    results = generate(*built, rows, batch_size=4, ordered=False)
    assert next(results)["id"] in {str(index) for index in range(2, 24, 3)} and len(decoded) == 4
    assert len(list(results)) == 23 and waiting == [4, 8, 12, 16, 20, 24]


def test_batches_stay_full_around_bad_rows(built, clips, monkeypatch):
    sizes = []

    def answer(rows, *rest):
        sizes.append(len(rows))
        return ((row.index, {"id": row.id, "prediction": ""}) for row in rows)

    monkeypatch.setattr(inference, "_answer_batch", answer)
    rows = [about(str(index), clips[1] if index % 2 else "nowhere.wav") for index in range(10)]
    results = list(generate(*built, rows, batch_size=3))
    assert sizes == [3, 2] and [row["id"] for row in results] == [str(index) for index in range(10)]
    assert sum("nowhere.wav" in row.get("error", "") for row in results) == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("hello", "needs messages, found 'hello'"),
        ({}, "needs messages, found nothing"),
        ({"messages": question(), "audios": "clip.wav"}, "audios must be a list of clips, found str"),
        ({"messages": []}, "empty"),
        ({"messages": question()}, "brings no clip"),
        ({"messages": answered(clips=0)}, "message 2: expected a user's message last, found the assistant's"),
    ],
)
def test_what_is_wrong_with_one_is_its_own_error(built, row, message):
    wrong, fine = generate(*built, [row, {"messages": question("what", 0)}], max_new_tokens=1)
    assert message in wrong["error"] and "\n" not in wrong["error"]
    assert "prediction" in fine
    with pytest.raises(AlmosaicError, match=r"message|audio|clip"):
        prepare(*built, row, 1)
