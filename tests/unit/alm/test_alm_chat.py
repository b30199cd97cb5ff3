"""Conversations through the templates of others: what is trained, what is asked, and what cannot be used."""

import pytest
from helpers_tiny import QUERIES, WINDOW_FRAMES, tiny_tokenizer

from almosaic.alm import AlmosaicProcessor
from almosaic.alm.processing import AUDIO_TOKEN, IGNORED
from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor

ANSWER = "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m.role }}\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"
WORDS = "{{ m.content }}<|im_end|>\n"


def loop(assistant, words=WORDS, prompt=PROMPT, before=""):
    """A tagged template that writes answers as `assistant` and other turns as `words`."""
    return (
        f"{before}{{% for m in messages %}}{TURN}{{% if m.role == 'assistant' %}}{assistant}"
        f"{{% else %}}{words}{{% endif %}}{{% endfor %}}{prompt}"
    )


# A template that joins strings, as most do: a list of parts is an error to it.
STRINGS = loop(ANSWER, words="{{ '' + m.content + '<|im_end|>\n' }}")
REFUSING = loop(
    ANSWER, before="{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
FORGETTING = loop(
    "{% if loop.last %}" + ANSWER + "{% else %}{% generation %}"
    "{{ m.content.split('</think>')[-1].strip() }}<|im_end|>{% endgeneration %}\n{% endif %}"
)
THINKING_PROMPT = (
    PROMPT + "{% if add_generation_prompt and not enable_thinking %}" + NO_THOUGHT + "{% endif %}"
)
THINKING = loop(NO_THOUGHT + ANSWER, prompt=THINKING_PROMPT)
THINKING_LAST = loop("{% if loop.last %}" + NO_THOUGHT + "{% endif %}" + ANSWER, prompt=THINKING_PROMPT)

QUESTION = [{"type": "audio"}, {"type": "text", "text": "what do you hear"}]
AGAIN = [{"type": "text", "text": "and in"}, {"type": "audio"}, {"type": "text", "text": "this"}]
TALK = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "a dog"},
    {"role": "user", "content": AGAIN},
    {"role": "assistant", "content": [{"type": "text", "text": "rain"}]},
]
FRAMES = [40, 70]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def processor(tokenizer):
    def build(template):
        extractor = AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES)
        return AlmosaicProcessor(extractor, tokenizer, chat_template=template, queries=QUERIES)

    return build


def trained_words(processor, encoded):
    """Stretches of labels as text."""
    stretches, open_ = [], False
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (token, IGNORED)
        if label != IGNORED:
            stretches[-1:] = [stretches[-1] + [token]] if open_ else [*stretches[-1:], [token]]
        open_ = label != IGNORED
    return [processor.tokenizer.decode(stretch) for stretch in stretches]


@pytest.mark.parametrize(
    ("template", "first"),
    [(STRINGS, ""), (REFUSING, ""), (FORGETTING, "<think> bark </think>"), (THINKING, "")],
    ids=["strings only", "no system role", "forgets thoughts", "puts thoughts in"],
)
def test_labels_are_the_answers_and_prompts_begin_the_conversations(processor, template, first):
    processor = processor(template)
    talk = [TALK[0], {"role": "assistant", "content": f"{first}a dog"}, *TALK[2:]]
    encoded = processor.encode(talk, FRAMES)
    assert trained_words(processor, encoded) == ["a dog<|im_end|>", "rain<|im_end|>"]
    assert encoded.input_ids.count(processor.audio_token_id) == 3 * QUERIES
    for turns in (1, 3):
        prompt = processor.encode(talk[:turns], FRAMES[: (turns + 1) // 2], add_generation_prompt=True)
        assert encoded.input_ids[: len(prompt.input_ids)] == prompt.input_ids
        assert encoded.labels[len(prompt.input_ids)] != IGNORED
    text = processor.apply_chat_template(talk)
    assert text.startswith(
        f"<|im_start|>user\n{AUDIO_TOKEN}what do you hear<|im_end|>\n<|im_start|>assistant\n"
    )
    assert f"and in{AUDIO_TOKEN}this" in text and "bark" not in text
    assert text.count("<think>") == (2 if template == THINKING else 0)


def test_a_template_that_thinks_in_the_last_turn_alone_teaches_one_answer_at_a_time(processor):
    processor = processor(THINKING_LAST)
    with pytest.raises(
        AlmosaicError, match="answer 1 of 2 would be learnt behind another text than the prompt"
    ):
        processor.encode(TALK, FRAMES)
    encoded = processor.encode(TALK[:2], FRAMES[:1])
    prompt = processor.encode(TALK[:1], FRAMES[:1], add_generation_prompt=True)
    assert encoded.input_ids[: len(prompt.input_ids)] == prompt.input_ids
    assert "<think>" in processor.tokenizer.decode(prompt.input_ids)
    assert trained_words(processor, encoded) == ["a dog<|im_end|>"]


@pytest.mark.parametrize(
    "template",
    [
        loop("{{ m.content }}<|im_end|>\n"),
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
        + TURN
        + "{{ m.content }}<|im_end|>\n"
        "{% endgeneration %}{% else %}" + TURN + WORDS + "{% endif %}{% endfor %}" + PROMPT,
        loop("{% if loop.last %}" + ANSWER + "{% else %}{{ m.content }}<|im_end|>\n{% endif %}"),
    ],
    ids=["no tags", "the role is tagged", "earlier answers are not tagged"],
)
def test_tags_that_miss_the_answers_are_an_error_and_not_silence(processor, template):
    with pytest.raises(AlmosaicError, match="or tags other words"):
        processor(template).encode(TALK, FRAMES)


def test_a_template_that_loses_or_repeats_a_clip_is_an_error(processor):
    later = loop(ANSWER, words="{% if loop.index0 == 0 %}(earlier)\n{% else %}" + WORDS + "{% endif %}")
    with pytest.raises(AlmosaicError, match="kept 1 of the conversation's 2 audio placeholders"):
        processor(later).encode(TALK, FRAMES)
    with pytest.raises(AlmosaicError, match="kept 4 of the conversation's 2 audio placeholders"):
        processor(loop(ANSWER, words="{{ m.content }}" + WORDS)).encode(TALK, FRAMES)
    with pytest.raises(AlmosaicError, match="kept 1 of the conversation's 2 audio placeholders"):
        processor(later).encode(TALK[:3], FRAMES, add_generation_prompt=True)


def test_a_refused_role_is_said_in_training_and_in_use(processor):
    processor = processor(REFUSING)
    opened = [{"role": "system", "content": "be brief"}, *TALK]
    for prompt in (False, True):
        with pytest.raises(
            AlmosaicError, match="the chat template refuses this conversation: no system role"
        ):
            processor.encode(opened, FRAMES, add_generation_prompt=prompt)


def test_a_tokenizers_own_untagged_template_is_an_error_never_a_guess(tokenizer, monkeypatch):
    monkeypatch.setattr(
        tokenizer, "chat_template", "{% for m in messages %}({{ m.role }}) {{ m.content }}{% endfor %}"
    )
    with pytest.raises(AlmosaicError, match=r"no \{% generation %\} tags and writes unlike any shipped one"):
        AlmosaicProcessor(AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES), tokenizer)
