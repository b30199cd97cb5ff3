"""Every sampling setting takes effect, none of the language model's own does; draws follow from their key."""

import pytest
import torch
from helpers_tiny import question, tiny_model, waveform

from almosaic.errors import AlmosaicError
from almosaic.inference import generate, stream
from almosaic.sampling import SamplingSettings

NEW = 8
CLIP = (waveform(0.5), 16_000)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    model, processor = tiny_model(tmp_path_factory.mktemp("sampling"))
    # Lone bytes are no text: how they look depends on what comes after them.
    names = processor.tokenizer.get_vocab()
    model.generation_config.suppress_tokens += [names[f"<0x{byte:02X}>"] for byte in range(256)]
    return model, processor


def row(name="a", text="what do you hear"):
    return {"id": name, "messages": question(text), "audios": [CLIP]}


def answers(built, **sampling):
    (result,) = generate(*built, [row()], max_new_tokens=NEW, **sampling)
    return result.get("predictions", [result["prediction"]])


def several(built, **sampling):
    return answers(built, num_return_sequences=12, seed=3, **sampling)


def test_temperature_decides_how_far_draws_stray(built):
    greedy = answers(built)[0]
    assert set(several(built, temperature=1e-4)) == {greedy}
    mild, wild = (len(set(several(built, temperature=t))) for t in (0.2, 5.0))
    assert mild < wild == 12


def test_top_k_of_one_and_a_tiny_top_p_are_greedy(built):
    greedy = answers(built)[0]
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
        assert set(several(built, temperature=5.0, **narrow)) == {greedy}
    free = several(built, temperature=5.0)
    for some in ({"top_k": 3}, {"top_p": 0.5}):
        narrowed = several(built, temperature=5.0, **some)
        assert len(set(narrowed)) > 1 and narrowed != free


def test_draws_follow_the_model(built):
    """The first words of many draws come as often as the model says, and only from the k likeliest."""
    model, processor = built
    inputs = processor([question()], [[CLIP[0]]])
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].float()
    likeliest = logits.topk(4)
    expected = (likeliest.values / 2.0).softmax(0)
    settings = SamplingSettings(temperature=2.0, top_k=4, num_return_sequences=4000, seed=0)
    mask = torch.ones(1, 7, dtype=torch.long)
    draw = settings.arguments(mask, ["a"], 1)["logits_processor"][0]
    words = draw(mask.repeat(4000, 1), logits.repeat(4000, 1)).argmax(1)
    shares = torch.stack([(words == word).float().mean() for word in likeliest.indices])
    assert shares.sum() == 1 and torch.allclose(shares, expected, atol=0.03)


def test_repetition_penalty_changes_what_is_said_again(built):
    model, processor = built
    plain, strict = (answers(built, repetition_penalty=penalty)[0] for penalty in (1.0, 50.0))

    def repeats(text):
        words = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return len(words) - len(set(words))

    (long,) = generate(model, processor, [row()], max_new_tokens=40)
    (varied,) = generate(model, processor, [row()], max_new_tokens=40, repetition_penalty=50.0)
    assert plain != strict and repeats(varied["prediction"]) < repeats(long["prediction"])


def test_beams_find_a_likelier_answer_than_greed(built):
    model, processor = built

    def likelihood(text, **sampling):
        inputs = processor([question(text)], [[CLIP[0]]])
        arguments = SamplingSettings(**sampling).arguments(inputs["attention_mask"], ["a"], 3)
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, **arguments)
            new = ids[:, inputs["input_ids"].shape[1] :]
            embedded = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            logits = model(**embedded).logits[:, -4:-1].float()
        logits[..., model.generation_config.suppress_tokens] = -torch.inf
        return float(logits.log_softmax(-1).gather(2, new[..., None]).sum())

    pairs = [(likelihood(text), likelihood(text, num_beams=8)) for text in ("what", "rain", "a dog", "bell")]
    assert all(beams > greedy - 1e-3 for greedy, beams in pairs)
    assert any(beams > greedy + 1e-2 for greedy, beams in pairs)
    assert len(set(answers(built, num_beams=4, num_return_sequences=4))) > 1


def test_the_same_seed_says_the_same_alone_in_company_and_in_a_stream(built):
    sampling = {"temperature": 2.0, "max_new_tokens": NEW, "seed": 5}
    rows = [
        row(name, text) for name, text in (("a", "what"), ("b", "is there rain in the recording"), ("c", "x"))
    ]
    alone = list(generate(*built, rows, batch_size=1, **sampling))
    assert list(generate(*built, rows, batch_size=3, **sampling)) == alone
    assert list(generate(*built, rows[1:], **sampling)) == alone[1:]
    assert ["".join(stream(*built, one, **sampling)).strip() for one in rows] == [
        r["prediction"] for r in alone
    ]
    assert list(generate(*built, rows, **{**sampling, "seed": 6})) != alone
    (renamed,) = generate(*built, [{**rows[0], "id": "z"}], **sampling)
    assert renamed["prediction"] != alone[0]["prediction"]


def test_without_a_seed_torch_decides_and_with_one_it_is_left_alone(built):
    torch.manual_seed(1)
    first, second = answers(built, temperature=3.0), answers(built, temperature=3.0)
    torch.manual_seed(1)
    assert answers(built, temperature=3.0) == first != second
    settings = SamplingSettings(temperature=1.0, seed=4)
    assert settings.with_seed() is settings
    assert SamplingSettings().with_seed().seed is None


def test_the_language_models_own_settings_are_switched_off(built):
    model, _ = built
    expected = answers(built), several(built, temperature=3.0), several(built, top_k=20)
    before = model.generation_config.to_dict()
    own = {"do_sample": True, "temperature": 9.0, "top_k": 3, "top_p": 0.1, "repetition_penalty": 30.0}
    model.generation_config.update(**own, num_beams=2)
    try:
        assert (answers(built), several(built, temperature=3.0), several(built, top_k=20)) == expected
    finally:
        model.generation_config.update(**{name: before[name] for name in (*own, "num_beams")})


def test_settings_that_exclude_each_other_are_refused(built):
    for sampling, message in (
        ({"num_beams": 3, "temperature": 1.0}, "num_beams 3 looks for the likeliest answer"),
        ({"num_return_sequences": 2}, "2 different answers need a temperature or as many beams"),
        ({"num_return_sequences": 3, "num_beams": 2}, "found num_beams 2"),
        ({"top_k": 0}, "sampling setting top_k"),
        ({"tempreature": 1.0}, "sampling setting tempreature"),
    ):
        with pytest.raises(AlmosaicError, match=message):
            answers(built, **sampling)
    for sampling in ({"num_beams": 2}, {"num_return_sequences": 2, "temperature": 1.0}):
        with pytest.raises(AlmosaicError, match="a stream writes one answer word by word"):
            next(stream(*built, row(), **sampling))
    for wrong in ({"batch_size": 0}, {"max_new_tokens": 0}):
        with pytest.raises(AlmosaicError, match="of 1 or more"):
            next(generate(*built, [row()], **wrong))
