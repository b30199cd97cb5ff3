"""The words of a language model: how wide and how loud they are, and room for `<|audio|>` among them."""

from typing import Any

import torch

from almosaic.errors import AlmosaicError

_SAMPLED_ROWS = 4096


def word_width(text_config: Any) -> int:
    """Width `H` of the words, in whose place audio tokens can stand.

    Raises:
        AlmosaicError: a model of more than text, or one whose blocks look words up again, which audio tokens
            are not.
    """
    if not hasattr(text_config, "hidden_size"):
        raise AlmosaicError(
            f"expected a model of text, found {text_config.model_type}, which reads more; give the language "
            "model inside it"
        )
    if getattr(text_config, "hidden_size_per_layer_input", 0):
        raise AlmosaicError(
            f"expected a model that looks a word up once, found {text_config.model_type}, which does so in "
            "every block; audio tokens have no entry there: give another language model"
        )
    return int(text_config.hidden_size)


@torch.no_grad()
def grow_vocabulary(language_model: Any, size: int) -> None:
    """Give the word tables at least `size` rows; a new row is the mean of the old, and can be re-derived."""
    rows = language_model.get_input_embeddings().weight.shape[0]
    if size <= rows:
        return
    language_model.resize_token_embeddings(size, mean_resizing=False)
    head = language_model.get_output_embeddings()
    tables = [language_model.get_input_embeddings().weight, head.weight]
    for table in (*tables, getattr(head, "bias", None)):
        if table is not None:
            table[rows:] = table[:rows].float().mean(dim=0).to(table.dtype)


@torch.no_grad()
def word_scale(language_model: Any) -> float:
    """Standard deviation of words as the first block is given them, over rows spread evenly over the table.

    What comes out of the table counts, not what is stored in it: Gemma multiplies its words by sqrt(H).
    """
    table = language_model.get_input_embeddings()
    rows, device = table.weight.shape[0], table.weight.device
    count = min(rows, _SAMPLED_ROWS)
    ids = torch.arange(count, device=device) * rows // count
    return float(table(ids).float().std())
