"""Tokenizers of several kinds: `<|audio|>` joins them, no other id moves, prompts end where answers begin."""

import json

import pytest
import sentencepiece
import torch
from helpers_tiny import (
    QUERIES,
    SENTENCES,
    WINDOW_FRAMES,
    tiny_encoder,
    tiny_language_model,
    tiny_tokenizer,
    waveform,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from almosaic.alm import AlmosaicForConditionalGeneration, AlmosaicProcessor
from almosaic.alm.processing import AUDIO_TOKEN, add_audio_token
from almosaic.alm.projectors import MLPProjectorSettings
from almosaic.alm.shipped_templates import PLAIN
from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor

MARKERS = ["<|im_start|>", "<|im_end|>"]
# Answers that melt into what stands before and behind them where text is cut by a tokenizer, not by turns.
ANSWERS = ["yes", " yes", "\nyes", "\n\n", "no\n", "ant yes", ""]


def unigram_sentencepiece(folder):
    """A sentencepiece folder of the other kind."""
    folder.mkdir()
    with (folder / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 4),
            model_writer=model,
            vocab_size=330,
            model_type="unigram",
            byte_fallback=True,
            pad_id=3,
            user_defined_symbols=MARKERS,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": False,
        "additional_special_tokens": MARKERS,
    }
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


def byte_level(folder, pad_token="<|endoftext|>"):
    """A byte-level BPE whose merges reach over line breaks and words, in one tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", *MARKERS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["\nyes\n", "\n\n", "assistant\nyes no", *SENTENCES] * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token=pad_token,
        extra_special_tokens=MARKERS,
    )
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


KINDS = {
    "sentencepiece bpe": tiny_tokenizer,
    "sentencepiece unigram": unigram_sentencepiece,
    "byte level": byte_level,
}


@pytest.fixture(params=KINDS)
def tokenizer(request, tmp_path):
    return KINDS[request.param](tmp_path / "tokenizer")


def processor_of(tokenizer, template=None):
    extractor = AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES)
    return AlmosaicProcessor(extractor, tokenizer, chat_template=template, queries=QUERIES)


def talk(answer):
    question = {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "is it assistant"}]}
    return [question, {"role": "assistant", "content": answer}, {"role": "user", "content": "and now"}]


def test_every_known_token_keeps_its_id(tokenizer):
    before, special = dict(tokenizer.get_vocab()), tokenizer.all_special_tokens
    added = add_audio_token(tokenizer)
    assert added == len(before) and add_audio_token(tokenizer) == added
    assert tokenizer.get_vocab() == before | {AUDIO_TOKEN: added}
    assert tokenizer.all_special_tokens == [*special, AUDIO_TOKEN]
    assert tokenizer(f"a{AUDIO_TOKEN}dog", add_special_tokens=False)["input_ids"].count(added) == 1


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_prompt_has_the_same_ids_in_training_and_in_use(tokenizer, answer):
    processor = processor_of(tokenizer)
    encoded = processor.encode(talk(answer), [40])
    prompt = processor.encode(talk(answer)[:1], [40], add_generation_prompt=True).input_ids
    assert encoded.input_ids[: len(prompt)] == prompt
    trained = [token for token in encoded.labels if token != -100]
    assert encoded.labels[: len(prompt) + 1] == [-100] * len(prompt) + trained[:1]
    assert tokenizer.decode(trained).strip() == f"{answer}<|im_end|>".strip()
    assert trained[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_same_text_in_one_piece_has_other_ids(tmp_path):
    """Without cuts between turns a prompt would not be the beginning of what was learnt."""
    tokenizer = byte_level(tmp_path)
    processor = processor_of(tokenizer)
    words = [
        turn | {"content": turn["content"] if turn["role"] == "assistant" else "is it"}
        for turn in talk("yes")
    ]
    texts = [
        processor.apply_chat_template(words[:turns], add_generation_prompt=turns == 1) for turns in (1, 2)
    ]
    prompt, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    assert texts[1].startswith(texts[0]) and whole[: len(prompt)] != prompt
    assert processor.encode(words[:2], []).input_ids[: len(prompt)] == prompt


def test_a_processor_comes_back_with_the_same_ids(tokenizer, tmp_path):
    processor = processor_of(tokenizer)
    processor.save_pretrained(tmp_path / "processor")
    loaded = AlmosaicProcessor.from_pretrained(tmp_path / "processor")
    assert loaded.audio_token_id == processor.audio_token_id
    assert loaded.encode(talk("yes"), [90]) == processor.encode(talk("yes"), [90])


def test_a_whole_model_hears_and_answers(tokenizer):
    language_model = tiny_language_model(len(tokenizer))
    model = AlmosaicForConditionalGeneration.from_parts(
        tiny_encoder(), language_model, MLPProjectorSettings(queries=QUERIES), tokenizer
    ).eval()
    processor = processor_of(tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    inputs = processor([talk("yes")[:1]] * 2, [[waveform(0.4)], [waveform(1.2)]])
    answers = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert answers.shape == (2, 4) and isinstance(tokenizer.batch_decode(answers)[0], str)
    learnt = processor([talk("yes")[:2]] * 2, [[waveform(0.4)], [waveform(1.2)]], add_generation_prompt=False)
    assert torch.isfinite(model(**learnt).loss)


def test_the_end_is_learnt_where_it_is_the_padding_too(tmp_path):
    processor = processor_of(byte_level(tmp_path), PLAIN)
    assert processor.tokenizer.pad_token_id == processor.tokenizer.eos_token_id
    batch = processor([talk("yes")[:2], talk("no, it is a bell")[:2]], [[waveform(0.4)]] * 2, False)
    for row in range(2):
        labels, real = batch["labels"][row], batch["attention_mask"][row].bool()
        assert (labels == processor.tokenizer.eos_token_id).sum() == 1
        assert (labels[~real] == -100).all()


def test_without_a_pad_token_there_is_one_clear_error(tmp_path):
    for tokenizer in (byte_level(tmp_path / "a", None), tiny_tokenizer(tmp_path / "b", pad_token=False)):
        with pytest.raises(AlmosaicError, match="no pad token, which batches need; set"):
            processor_of(tokenizer)
        parts = tiny_encoder(), tiny_language_model(340), MLPProjectorSettings(queries=QUERIES), tokenizer
        with pytest.raises(AlmosaicError, match="no pad token, which batches need"):
            AlmosaicForConditionalGeneration.from_parts(*parts)
