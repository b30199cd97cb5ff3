"""Answers must not depend on company: batches, padding, several answers and beams hear the right clips."""

import pytest
import torch
from helpers_tiny import question, tiny_model, waveform

from almosaic.inference import generate, stream
from almosaic.token_memory import TokenMemory

NEW = 6
GREEDY, SEVERAL = {}, {"temperature": 1.5, "num_return_sequences": 3, "seed": 2}
WAYS = [
    GREEDY,
    {"num_beams": 2},
    {"num_beams": 3, "num_return_sequences": 2},
    {"repetition_penalty": 3.0},
    {"num_beams": 2, "repetition_penalty": 3.0},
    SEVERAL,
]


@pytest.fixture(scope="module", params=["mlp", "qformer"])
def built(request, tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("generation"), request.param)


@pytest.fixture(scope="module")
def rows():
    """Mixed prompt lengths, clip counts (0 to 3) and windows (1 to 3)."""
    texts = ["is there rain", "which sound comes first, the bell or the dog", "what do you hear in the clip"]
    clips = [[0.4], [1.5], [], [1.1, 0.3], [0.2], [0.5, 1.9, 0.3]]
    return [
        {
            "id": f"row-{index}",
            "messages": question(texts[index % 3], len(seconds)),
            "audios": [
                (waveform(length, 10 * index + place), 16_000) for place, length in enumerate(seconds)
            ],
        }
        for index, seconds in enumerate(clips)
    ]


def batch_of(processor, rows):
    return processor([row["messages"] for row in rows], [[clip for clip, _ in row["audios"]] for row in rows])


def answer(model, inputs, **settings):
    """New tokens only."""
    ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **settings)
    return ids[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_batches_answer_as_one_by_one(built, rows, settings):
    """Alone and without a memory, in batches, in any order, with clips that were heard before."""
    settings = {"max_new_tokens": NEW, **settings}
    nothing, memory = TokenMemory(*built, limit=0), TokenMemory(*built)
    alone = [next(generate(*built, [row], memory=nothing, **settings)) for row in rows]
    assert [row["id"] for row in alone] == [row["id"] for row in rows]
    assert len({row["prediction"] for row in alone}) > 1
    for size in (2, 6):
        assert list(generate(*built, rows, batch_size=size, memory=memory, **settings)) == alone
    unordered = generate(*built, rows[::-1], batch_size=4, memory=memory, ordered=False, **settings)
    assert {row["id"]: row for row in unordered} == {row["id"]: row for row in alone}


def test_padding_is_not_penalised_as_repetition(built, rows):
    """Where the pad token ends answers, a batch's padding must not keep short prompts from ending."""
    model, processor = built
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    before = processor.tokenizer.pad_token
    processor.tokenizer.pad_token = "</s>"
    head = model.get_output_embeddings().weight
    row = head[processor.tokenizer.pad_token_id].detach().clone()
    try:
        with torch.no_grad():
            head[processor.tokenizer.pad_token_id] = head[end]
        texts = [{**rows[2], "id": name, "messages": question(text, 0)} for name, text in TEXTS.items()]
        settings = {"max_new_tokens": 12, "repetition_penalty": 2.0, "temperature": 1.0, "seed": 0}
        alone = [next(generate(*built, [text], **settings)) for text in texts]
        assert list(generate(*built, texts, **settings)) == alone
    finally:
        processor.tokenizer.pad_token = before
        with torch.no_grad():
            head[processor.tokenizer.convert_tokens_to_ids("</s>")] = row


TEXTS = {"long": "which sound comes first, the bell or the dog", "short": "a", "empty": "is there rain"}


def test_half_precision_is_exact_but_for_company(tmp_path, rows):
    """bfloat16: the same with and without a memory, streamed or not; a batch differs by rounding alone."""
    from helpers_tiny import tiny_language_model, tiny_tokenizer

    words = len(tiny_tokenizer(tmp_path / "words"))
    built = tiny_model(tmp_path, language_model=tiny_language_model(words).bfloat16())
    model, processor = built
    assert model.dtype == torch.bfloat16 and model.audio_tower.dtype == torch.float32
    memory = TokenMemory(*built)
    alone = list(generate(*built, rows, batch_size=1, max_new_tokens=NEW))
    for _ in range(2):
        assert list(generate(*built, rows, batch_size=1, max_new_tokens=NEW, memory=memory)) == alone
    together = list(generate(*built, rows, batch_size=6, max_new_tokens=NEW))
    assert list(generate(*built, rows, batch_size=6, max_new_tokens=NEW, memory=memory)) == together
    for row, answer in zip(rows, alone, strict=True):
        streamed = "".join(stream(*built, row, max_new_tokens=NEW, memory=memory))
        assert streamed.strip() == answer["prediction"]
    batched = prompt_scores(model, batch_of(processor, rows)).float()
    single = torch.cat([prompt_scores(model, batch_of(processor, [row])).float() for row in rows])
    spread = single.std()
    assert (batched - single).abs().max() < 0.05 * spread


def test_every_returned_sequence_hears_its_own_rows_windows(built, rows):
    """Clips of 2 and 1 windows: an entry-by-entry repeat would give an answer another row's window."""
    model, processor = built
    rows = [rows[1], rows[0], rows[2], rows[3]]
    inputs = batch_of(processor, rows)
    assert inputs["audio_windows"].tolist() == [3, 1, 2, 1]
    expected = prompt_scores(model, inputs)
    for settings in (
        {"num_return_sequences": 2, "do_sample": True},
        {"num_beams": 2, "num_return_sequences": 2},
    ):
        torch.manual_seed(0)
        output = model.generate(
            **inputs, **settings, max_new_tokens=1, output_logits=True, return_dict_in_generate=True
        )
        for repeat in range(2):
            assert torch.allclose(output.logits[0][repeat::2], expected, atol=1e-4)


def prompt_scores(model, inputs):
    """Logits of the first new token, straight from `forward`."""
    with torch.no_grad():
        return model(**inputs).logits[:, -1]


def test_audio_is_heard_once_with_a_cache_and_every_step_without(built, rows):
    model, processor = built
    inputs = batch_of(processor, rows)
    calls = []
    hook = model.multi_modal_projector.register_forward_hook(lambda *call: calls.append(1))
    cached = answer(model, inputs)
    assert len(calls) == 1
    uncached = answer(model, inputs, use_cache=False)
    hook.remove()
    assert len(calls) == 1 + uncached.shape[1]
    assert torch.equal(cached, uncached)


def test_cached_patch_tokens_generate_the_same(built, rows):
    model, processor = built
    inputs = batch_of(processor, rows)
    expected = answer(model, inputs, num_beams=2)
    features = inputs.pop("input_features")
    with torch.no_grad():
        tokens = model.get_audio_features(features, inputs.pop("input_features_mask")).last_hidden_state
    assert torch.equal(answer(model, {**inputs, "audio_features": tokens}, num_beams=2), expected)


def test_the_answer_depends_on_the_audio(built, rows):
    model, processor = built
    inputs = batch_of(processor, rows[:1])
    other = {**inputs, "input_features": inputs["input_features"].flip(1)}
    assert not torch.allclose(prompt_scores(model, inputs), prompt_scores(model, other), atol=1e-3)


def test_the_audio_token_is_never_written(built, rows):
    model, processor = built
    inputs = batch_of(processor, rows)
    head = model.get_output_embeddings()
    before = head.weight.detach().clone()
    with torch.no_grad():
        head.weight[:] = 0.0  # a tie of all words, which the audio token would win
        head.weight[processor.audio_token_id] = 100 * torch.randn_like(before[0])
    written = [answer(model, inputs), answer(model, inputs, num_beams=2)]
    with torch.no_grad():
        head.weight.copy_(before)
    assert not any((ids == processor.audio_token_id).any() for ids in written)


def test_generation_stops_at_the_end_of_the_chat_turn(built):
    model, processor = built
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id
