"""The text stage: it learns, its folder loads like any model's, and other models take the same path."""

import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from almosaic.errors import AlmosaicError
from almosaic.training.language_model import (
    LanguageModelSettings,
    LanguageModelSource,
    OpenLanguageModel,
    TinyLanguageModel,
    train_language_model,
)

sys.path.insert(0, str(Path(__file__).parent))
from stages import SCENES, losses, tiny_bank

TINY = {"name": "tiny", "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def bank():
    return tiny_bank()


def run(folder, bank, steps=3, **changes):
    optim = {"steps": steps, "batch_size": 8, "learning_rate": 1e-2, "log_steps": 1}
    given = {"language_model": TINY, "data": {"scenes": 16}, "optim": optim} | changes
    settings = LanguageModelSettings.model_validate(given)
    return train_language_model(settings, bank=bank, scenes=SCENES, folder=folder, seed=0)


def test_it_learns_and_its_folder_loads_like_any_other(tmp_path, bank):
    folder = run(tmp_path, bank, steps=30)
    found = list(losses(tmp_path).values())
    assert np.mean(found[-5:]) < 0.7 * np.mean(found[:3])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "_ dog _ Is a dog heard?"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("<|im_start|>assistant\n")
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    answer = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > ids["input_ids"].shape[1]


def test_another_model_goes_the_same_way_from_a_folder(tmp_path, bank):
    first = run(tmp_path / "a", bank, steps=0)
    second = run(tmp_path / "b", bank, steps=2, language_model={"name": str(first)})
    assert (
        AutoTokenizer.from_pretrained(second).get_vocab() == AutoTokenizer.from_pretrained(first).get_vocab()
    )


def test_training_on_all_words_is_another_task(tmp_path, bank):
    run(tmp_path / "a", bank, steps=1)
    run(tmp_path / "b", bank, steps=1, full_text=True)
    assert losses(tmp_path / "a") != losses(tmp_path / "b")


def test_training_is_repeatable(tmp_path, bank):
    run(tmp_path / "a", bank)
    run(tmp_path / "b", bank)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_names_choose_between_tiny_and_open_models():
    read = TypeAdapter(LanguageModelSource).validate_python
    assert isinstance(read({"name": "tiny", "layers": 3}), TinyLanguageModel)
    assert read({"name": "Qwen/Qwen3-0.6B"}) == OpenLanguageModel(name="Qwen/Qwen3-0.6B")
    with pytest.raises(ValidationError, match="layers"):
        read({"name": "Qwen/Qwen3-0.6B", "layers": 3})


def test_a_model_that_is_not_there_is_one_line(tmp_path, bank):
    with pytest.raises(AlmosaicError, match="language model 'nobody/nothing' cannot be had") as caught:
        run(tmp_path, bank, language_model={"name": "nobody/nothing"})
    assert "\n" not in str(caught.value)
