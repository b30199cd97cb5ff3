"""Chat templates: what the shipped ones write, which one a tokenizer gets, and where generation stops."""

import pytest
from family_templates import UNTAGGED
from helpers_tiny import QUERIES, WINDOW_FRAMES, tiny_encoder, tiny_language_model, tiny_tokenizer
from pydantic import ValidationError

from almosaic.alm.projectors import MLPProjectorSettings
from almosaic.alm.shipped_templates import CHATML, LLAMA3, PLAIN, SHIPPED
from almosaic.alm.templates import choose_template, end_token_id, named_template, render, render_training
from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.training.alm import AlmStageSettings
from almosaic.training.alm_parts import Parts, join_parts

SYSTEM = {"role": "system", "content": "be brief"}
TURNS = [
    {"role": "user", "content": "what is it"},
    {"role": "assistant", "content": "rain"},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "yes"},
]
ROLES = {"chatml", "qwen3", "qwen2", "qwen2.5", "smollm2"}
# A conversation of two questions as the published models of each family know it.
WRITTEN = {
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nwhat is it<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nrain<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nsure?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nyes<|eot_id|>",
    "llama2": "<s>[INST] what is it [/INST] rain </s><s>[INST] sure? [/INST] yes </s>",
    "gemma": "<s><start_of_turn>user\nwhat is it<end_of_turn>\n<start_of_turn>model\nrain<end_of_turn>\n"
    "<start_of_turn>user\nsure?<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n",
    "mistral": "<s> [INST] what is it [/INST] rain</s> [INST] sure? [/INST] yes</s>",
    "mistral_v3": "<s>[INST] what is it[/INST] rain</s>[INST] sure?[/INST] yes</s>",
    "mistral_nemo": "<s>[INST]what is it[/INST]rain</s>[INST]sure?[/INST]yes</s>",
    "phi3": "<|user|>\nwhat is it<|end|>\n<|assistant|>\nrain<|end|>\n"
    "<|user|>\nsure?<|end|>\n<|assistant|>\nyes<|end|>\n</s>",
    "phi4": "<|im_start|>user<|im_sep|>what is it<|im_end|><|im_start|>assistant<|im_sep|>rain<|im_end|>"
    "<|im_start|>user<|im_sep|>sure?<|im_end|><|im_start|>assistant<|im_sep|>yes<|im_end|>",
    "phi4_mini": "<|user|>what is it<|end|><|assistant|>rain<|end|>"
    "<|user|>sure?<|end|><|assistant|>yes<|end|></s>",
    "zephyr": "<|user|>\nwhat is it</s>\n<|assistant|>\nrain</s>\n"
    "<|user|>\nsure?</s>\n<|assistant|>\nyes</s>\n",
    "chatml": "<|im_start|>user\nwhat is it<|im_end|>\n<|im_start|>assistant\nrain<|im_end|>\n"
    "<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n",
}
WRITTEN["gemma3"] = WRITTEN["gemma"]
# The first question with a system message, as a prompt; what is missing refuses one.
SYSTEM_PROMPTS = {
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nwhat is it<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama2": "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nwhat is it [/INST]",
    "gemma3": "<s><start_of_turn>user\nbe brief\n\nwhat is it<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "<s> [INST] be brief\n\nwhat is it [/INST]",
    "mistral_v3": "<s>[INST] be brief\n\nwhat is it[/INST]",
    "mistral_nemo": "<s>[INST]be brief\n\nwhat is it[/INST]",
    "phi3": "<|system|>\nbe brief<|end|>\n<|user|>\nwhat is it<|end|>\n<|assistant|>\n",
    "phi4": "<|im_start|>system<|im_sep|>be brief<|im_end|><|im_start|>user<|im_sep|>what is it<|im_end|>"
    "<|im_start|>assistant<|im_sep|>",
    "phi4_mini": "<|system|>be brief<|end|><|user|>what is it<|end|><|assistant|>",
    "zephyr": "<|system|>\nbe brief</s>\n<|user|>\nwhat is it</s>\n<|assistant|>\n",
    "chatml": "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nwhat is it<|im_end|>\n"
    "<|im_start|>assistant\n",
}
ENDS = dict.fromkeys(ROLES | {"phi4"}, "<|im_end|>") | {
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
    "phi4_mini": "<|end|>",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def _no_template(tokenizer):
    tokenizer.chat_template = None


def text_of(pieces):
    return "".join(text for text, _ in pieces)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_family_reads_what_its_models_were_trained_on(tokenizer, name):
    assert text_of(render(SHIPPED[name], tokenizer, TURNS)) == WRITTEN[name]
    asked = [SYSTEM, TURNS[0]]
    if name == "gemma":
        with pytest.raises(AlmosaicError, match="refuses this conversation: no system message"):
            render(SHIPPED[name], tokenizer, asked, True)
    else:
        assert text_of(render(SHIPPED[name], tokenizer, asked, True)) == SYSTEM_PROMPTS[name]


@pytest.mark.parametrize("name", [*SHIPPED, "plain"])
def test_the_assistant_and_its_end_are_trained_and_nothing_else(tokenizer, name):
    pieces = render_training(SHIPPED.get(name, PLAIN), tokenizer, TURNS)
    trained = [text.strip() for text, assistant in pieces if assistant]
    end = " </s>" if name == "llama2" else ENDS.get(name, "</s>")
    assert trained == [f"rain{end}", f"yes{end}"]
    others = text_of(piece for piece in pieces if not piece[1])
    assert "what is it" in others and "sure?" in others and f"rain{end}" not in others


@pytest.mark.parametrize("name", [*SHIPPED, "plain"])
def test_a_prompt_is_the_beginning_of_what_was_trained(tokenizer, name):
    template = SHIPPED.get(name, PLAIN)
    talks = [TURNS] if name == "gemma" else [TURNS, [SYSTEM, *TURNS[:2]]]
    for talk in talks:
        whole = text_of(render_training(template, tokenizer, talk))
        for index, turn in enumerate(talk):
            if turn["role"] == "assistant":
                prompt = text_of(render(template, tokenizer, talk[:index], add_generation_prompt=True))
                assert whole.startswith(prompt) and not whole.startswith(prompt + prompt)
                assert whole[len(prompt) :].lstrip().startswith(turn["content"])


@pytest.mark.parametrize("name", ["llama2", "gemma", "gemma3", "mistral", "mistral_v3", "mistral_nemo"])
def test_turns_out_of_order_are_refused_as_the_family_does(tokenizer, name):
    with pytest.raises(AlmosaicError, match="refuses this conversation: user and assistant must take turns"):
        render(SHIPPED[name], tokenizer, [TURNS[0], TURNS[2]])


@pytest.mark.parametrize("name", UNTAGGED)
def test_an_untagged_template_gets_the_shipped_one_that_writes_the_same(tokenizer, name):
    tokenizer.chat_template = UNTAGGED[name]
    assert choose_template(tokenizer) == SHIPPED[name]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("phi3", ("<|assistant|>\n{% else", "<|assistant|>{% else")),  # the prompt ends elsewhere
        ("mistral", ("loop.first", "loop.last")),  # seen in the second question only
        ("gemma3", ("+ '\n\n'", "+ '\n'")),
        ("chatml", ("{% endfor %}", "{% endfor %}{% if messages | length > 2 %} {% endif %}")),
    ],
)
def test_a_small_difference_is_another_template(tokenizer, name, change):
    tokenizer.chat_template = UNTAGGED[name].replace(*change)
    assert tokenizer.chat_template != UNTAGGED[name]
    with pytest.raises(AlmosaicError, match="writes unlike any shipped"):
        choose_template(tokenizer)


def test_a_tagged_template_is_used_as_it_is(tokenizer):
    tokenizer.chat_template = "{% generation %}x{% endgeneration %}"
    assert choose_template(tokenizer) == tokenizer.chat_template


def test_without_a_template_chatml_needs_its_markers(tokenizer, monkeypatch):
    assert choose_template(tokenizer) == CHATML
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: {"a": 0})
    assert choose_template(tokenizer) == PLAIN


def test_an_unknown_family_is_an_error_never_a_guess(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    with pytest.raises(AlmosaicError, match=r"no \{% generation %\} tags and writes unlike any shipped"):
        choose_template(tokenizer)
    tokenizer.chat_template = {"default": CHATML, "tools": CHATML}
    with pytest.raises(AlmosaicError, match="several chat templates"):
        choose_template(tokenizer)


def test_what_a_template_refuses_is_one_clear_error(tokenizer):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(AlmosaicError, match="refuses this conversation: no system role"):
        render(refusing, tokenizer, [SYSTEM, *TURNS])


def test_generation_stops_at_the_end_of_an_answer(tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_token_id(CHATML, tokenizer) == end
    assert end_token_id(PLAIN, tokenizer) == tokenizer.eos_token_id
    # Some templates tag the line break behind the end, too: that is not where to stop.
    assert end_token_id(CHATML.replace("'<|im_end|>'", "'<|im_end|>\\n'"), tokenizer) == end
    with pytest.raises(AlmosaicError, match="marks no assistant words"):
        end_token_id(UNTAGGED["chatml"], tokenizer)


def test_a_template_whose_answers_cannot_end_is_refused(tokenizer):
    open_ended = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>{% endfor %}"
    )
    with pytest.raises(AlmosaicError, match="leave out what ends an answer"):
        end_token_id(open_ended, tokenizer)
    with pytest.raises(AlmosaicError, match=r"'<\|eot_id\|>', which is \d+ tokens of this tokenizer"):
        end_token_id(LLAMA3, tokenizer)


def test_llama3_opens_with_its_beginning_of_sequence(tokenizer):
    assert render(LLAMA3, tokenizer, TURNS)[0][0].startswith("<s><|start_header_id|>user")


def test_a_recipe_names_a_shipped_template_or_a_file_of_its_own(tmp_path):
    assert named_template("gemma3") == SHIPPED["gemma3"] and named_template("plain") == PLAIN
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML)
    assert named_template(str(file)) == CHATML
    file.write_text(UNTAGGED["chatml"])
    with pytest.raises(AlmosaicError, match=r"mine\.jinja has no \{% generation %\} tags"):
        named_template(str(file))
    with pytest.raises(AlmosaicError, match=r"none\.jinja cannot be read"):
        named_template(str(tmp_path / "none.jinja"))
    with pytest.raises(
        AlmosaicError, match=r"gemma4 is none that we ship; name a \.jinja file, or one of chatml"
    ):
        named_template("gemma4")


def test_a_stage_speaks_the_template_it_names(tmp_path):
    with pytest.raises(ValidationError, match="gemma4 is none that we ship"):
        AlmStageSettings(chat_template="gemma4")
    language_model, tokenizer = tiny_language_model(400), tiny_tokenizer(tmp_path / "lm")
    language_model.save_pretrained(tmp_path / "lm")
    tiny_encoder().save_pretrained(tmp_path / "encoder")
    AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES).save_pretrained(tmp_path / "encoder")
    parts = Parts(audio_tower=tmp_path / "encoder", language_model=tmp_path / "lm")
    projector = MLPProjectorSettings(queries=QUERIES)
    model, processor = join_parts(parts, projector, None, trains_words=False, chat_template="zephyr")
    assert processor.chat_template == SHIPPED["zephyr"]
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
