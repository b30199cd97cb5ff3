"""What a token memory keeps, for how long, and that the encoder rests meanwhile."""

import numpy as np
import pytest
import torch
from helpers_tiny import question, tiny_model, waveform

from almosaic import token_memory
from almosaic.errors import AlmosaicError
from almosaic.inference import generate, stream
from almosaic.token_memory import TokenMemory

SHORT, LONG = waveform(0.5, 1), waveform(1.5, 2)  # 1 and 3 windows


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("memory"))


@pytest.fixture
def encoded(built):
    """How many windows went through the encoder, call by call."""
    counts: list[int] = []
    hook = built[0].audio_tower.register_forward_hook(
        lambda part, inputs, output: counts.append(len(inputs[0]))
    )
    yield counts
    hook.remove()


def asked(text, *clips):
    return {"messages": question(text, len(clips)), "audios": [(clip, 16_000) for clip in clips]}


def test_tokens_are_those_of_the_encoder(built):
    model, processor = built
    found = TokenMemory(*built).tokens([SHORT, LONG])
    assert [len(tokens) for tokens in found] == [1, 3]
    inputs = processor.feature_extractor([SHORT, LONG])
    with torch.no_grad():
        expected = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    torch.testing.assert_close(torch.cat(found), expected.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_a_clip_is_encoded_once_and_by_its_samples(built, encoded):
    memory = TokenMemory(*built)
    first = memory.tokens([SHORT, LONG, SHORT.copy()])
    assert encoded == [4] and torch.equal(first[0], first[2])
    again = memory.tokens([LONG.copy(), SHORT])
    assert encoded == [4] and torch.equal(again[0], first[1]) and memory.windows == 4
    memory.tokens([SHORT[:-160]])
    assert encoded == [4, 1]
    memory.clear()
    memory.tokens([SHORT])
    assert encoded == [4, 1, 1] and memory.windows == 1


def test_what_was_used_longest_ago_goes_first(built, encoded):
    memory = TokenMemory(*built, limit=4)
    memory.tokens([SHORT])
    memory.tokens([LONG])
    memory.tokens([SHORT])  # now the long one is the oldest
    memory.tokens([waveform(0.4, 3)])
    assert memory.windows == 2
    del encoded[:]
    memory.tokens([SHORT])
    assert encoded == []
    memory.tokens([LONG])
    assert encoded == [3] and memory.windows == 4


def test_a_clip_above_the_limit_is_used_but_not_kept(built, encoded):
    memory = TokenMemory(*built, limit=2)
    memory.tokens([SHORT])
    assert len(memory.tokens([LONG])[0]) == 3
    assert memory.windows == 1  # the short one was not thrown out for nothing
    nothing = TokenMemory(*built, limit=0)
    nothing.tokens([SHORT])
    assert nothing.windows == 0
    with pytest.raises(AlmosaicError, match="found limit=-1"):
        TokenMemory(*built, limit=-1)


def test_long_and_many_clips_are_encoded_a_few_windows_at_a_time(built, encoded, monkeypatch):
    clips = [waveform(0.3 + 0.2 * (index % 3), index) for index in range(7)] + [LONG]
    expected = TokenMemory(*built).tokens(clips)
    monkeypatch.setattr(token_memory, "WINDOWS_AT_ONCE", 2)
    del encoded[:]
    found = TokenMemory(*built).tokens(clips)
    assert max(encoded) == 2 and sum(encoded) == sum(len(tokens) for tokens in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_second_question_about_a_clip_does_not_run_the_encoder(built, encoded):
    memory = TokenMemory(*built)
    first = asked("what do you hear", SHORT)
    answer = "".join(stream(*built, first, memory=memory, max_new_tokens=4))
    assert encoded == [1]
    turns = [{"role": "assistant", "content": answer}, *question("is there rain", 0)]
    later = {**first, "messages": [*first["messages"], *turns]}
    second = list(stream(*built, later, memory=memory, max_new_tokens=4))
    list(generate(*built, [asked("is there rain", SHORT), later], memory=memory, max_new_tokens=4))
    assert encoded == [1]
    new = {**later, "messages": [*later["messages"], {"role": "assistant", "content": "no"}]}
    new = {
        "messages": [*new["messages"], *question("and here")],
        "audios": [*later["audios"], (LONG, 16_000)],
    }
    list(stream(*built, new, memory=memory, max_new_tokens=4))
    assert encoded == [1, 3]
    assert second == list(stream(*built, later, max_new_tokens=4))


def test_one_call_hears_a_clip_once(built, encoded):
    rows = [asked(text, LONG) for text in ("what do you hear", "is there rain", "a bell or a dog")]
    list(generate(*built, rows, batch_size=1, max_new_tokens=2, num_beams=2))
    assert encoded == [3]


def test_a_memory_belongs_to_one_model(built, tmp_path):
    other = tiny_model(tmp_path)
    with pytest.raises(AlmosaicError, match="another model or processor"):
        list(generate(*built, [asked("what", SHORT)], memory=TokenMemory(*other)))


def test_drop_path_is_off_while_a_model_in_training_is_asked(tmp_path):
    from helpers_tiny import tiny_encoder

    model, processor = tiny_model(tmp_path, audio_tower=tiny_encoder(drop_path_rate=0.9))
    expected = TokenMemory(model, processor).tokens([LONG])[0]
    model.train()
    found = TokenMemory(model, processor).tokens([LONG])[0]
    assert model.training and torch.equal(found, expected) and not found.requires_grad


def test_no_clips_no_inputs(built):
    memory = TokenMemory(*built)
    assert memory.inputs([[], []]) == {}
    inputs = memory.inputs([[SHORT, LONG], [], [SHORT]])
    assert inputs["audio_windows"].tolist() == [1, 3, 1] and inputs["audio_clips"].tolist() == [2, 0, 1]
    assert len(inputs["audio_features"]) == 5
    assert np.isfinite(inputs["audio_features"].numpy()).all()
