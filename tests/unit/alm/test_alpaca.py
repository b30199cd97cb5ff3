"""The prompt of LTU: the published text and ids, audio before everything, inputs, further turns."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from helpers_tiny import SENTENCES, WINDOW_FRAMES, tiny_tokenizer
from transformers import AutoTokenizer

from almosaic.alm import AlmosaicProcessor
from almosaic.alm.alpaca import ALPACA_SHORT, prepare_tokenizer
from almosaic.alm.templates import end_token_id, render
from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor

PROMPT = "### Instruction:\nwhat do you hear\n\n### Response:\n"
WITH_INPUT = "### Instruction:\nanswer\n\n### Input:\nis there rain\n\n### Response:\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model with LLaMA's settings: text as it is, unknown 0, bos 1, eos 2, no padding."""
    folder = tmp_path_factory.mktemp("llama")
    with (folder / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*SENTENCES, "### Instruction: ### Input: ### Response:"] * 4),
            model_writer=model,
            vocab_size=380,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    found = AutoTokenizer.from_pretrained(folder)
    prepare_tokenizer(found)
    return found


@pytest.fixture(scope="module")
def pieces(folder: Path) -> Any:
    """Sentencepiece itself, without the library's tokenizer in between."""
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def processor(tokenizer: Any) -> AlmosaicProcessor:
    extractor = AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES)
    return AlmosaicProcessor(extractor, tokenizer, chat_template=ALPACA_SHORT, queries=4)


def user(*parts: str) -> dict[str, Any]:
    """A user's turn; "clip" stands for an audio part."""
    typed = [{"type": "audio"} if part == "clip" else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": typed}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def text(messages: list[dict[str, Any]], processor: AlmosaicProcessor) -> str:
    found = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("clip", "what do you hear")], PROMPT),
        ([user("what do ", "clip", "you hear")], PROMPT),
        ([system("answer"), user("clip", "is there rain")], WITH_INPUT),
        ([system("what do you hear"), user("clip")], PROMPT),  # nothing to put into an input block
    ],
)
def test_a_prompt_has_the_published_ids(
    processor: AlmosaicProcessor, pieces: Any, messages: list[dict[str, Any]], expected: str
) -> None:
    """Audio, the first token, then the text as a sentencepiece model cuts it when it stands alone."""
    encoded = processor.encode(messages, [60], add_generation_prompt=True)
    assert encoded.input_ids == [processor.audio_token_id] * 4 + [1, *pieces.encode(expected)]
    assert text(messages, processor) == f"<|audio|><s> {expected}"


def test_an_answer_ends_with_the_end_of_the_sequence_and_is_what_is_learned(
    processor: AlmosaicProcessor, pieces: Any
) -> None:
    encoded = processor.encode([user("clip", "what do you hear"), answer("rain")], [60])
    own = [*pieces.encode("rain"), 2]
    assert encoded.input_ids[-len(own) :] == own
    assert encoded.labels == [-100] * (len(encoded.input_ids) - len(own)) + own


def test_clips_of_all_turns_stand_before_everything(processor: AlmosaicProcessor) -> None:
    talk = [user("clip", "a"), answer("b"), user("c", "clip"), answer("d")]
    rendered = render(ALPACA_SHORT, processor.tokenizer, [flat(turn) for turn in talk])
    assert "".join(piece for piece, _ in rendered) == (
        "<|audio|><|audio|><s> ### Instruction:\na\n\n### Response:\nb</s>\n\n"
        "### Instruction:\nc\n\n### Response:\nd</s>"
    )
    assert [piece for piece, trained in rendered if trained] == ["b</s>", "d</s>"]
    asked = processor.encode(talk[:3], [60, 60], add_generation_prompt=True).input_ids
    assert [token == processor.audio_token_id for token in asked[:9]] == [True] * 8 + [False]
    with pytest.raises(AlmosaicError, match="answer 1 of 2 would be learnt behind another text"):
        processor.encode(talk, [60, 60])  # the first answer would hear a clip that comes after it


def flat(turn: dict[str, Any]) -> dict[str, str]:
    if isinstance(turn["content"], str):
        return turn
    words = ["<|audio|>" if part["type"] == "audio" else part["text"] for part in turn["content"]]
    return {"role": turn["role"], "content": "".join(words)}


def test_a_prompt_is_the_beginning_of_what_was_trained(processor: AlmosaicProcessor) -> None:
    talk = [system("answer"), user("a"), answer("b"), user("c"), answer("d")]
    for turns in (2, 4):
        prompt = processor.encode(talk[:turns], [], add_generation_prompt=True).input_ids
        assert processor.encode(talk, []).input_ids[: len(prompt)] == prompt


def test_generation_stops_at_the_end_token_and_padding_is_token_0(tokenizer: Any) -> None:
    assert end_token_id(ALPACA_SHORT, tokenizer) == tokenizer.eos_token_id == 2
    assert tokenizer.pad_token_id == 0


def test_a_tokenizer_that_pads_keeps_its_pad_token(tmp_path: Path) -> None:
    found = tiny_tokenizer(tmp_path)
    prepare_tokenizer(found)
    assert found.pad_token_id == 3
