"""One conversation as token ids: what stands for a clip, what a clip costs, where an answer ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from almosaic.alm.configuration import AlmosaicConfig
from almosaic.audio import SAMPLING_RATE
from almosaic.errors import AlmosaicError
from almosaic.features import HOP_SAMPLES
from almosaic.messages import AUDIO_TOKEN

IGNORED = -100
FRAMES_PER_SECOND = SAMPLING_RATE // HOP_SAMPLES


@dataclass(frozen=True)
class Encoded:
    """One conversation as token ids, labels (-100 = not trained) and the windows of each of its clips."""

    input_ids: list[int]
    labels: list[int]
    windows: list[int]


def time_cue(window: int, window_frames: int) -> str:
    """`[m:ss]`, the time at which window `window` of a clip begins."""
    seconds = window * window_frames // FRAMES_PER_SECOND
    return f"[{seconds // 60}:{seconds % 60:02d}]"


def clip_ids(
    windows: int, window_frames: int, queries: int, audio_token_id: int, tokenizer: Any
) -> list[int]:
    """Token ids that stand for one clip: `queries` placeholders per window, a time cue between windows."""
    ids = [audio_token_id] * queries
    for window in range(1, windows):
        ids += tokenizer(time_cue(window, window_frames), add_special_tokens=False)["input_ids"]
        ids += [audio_token_id] * queries
    return ids


def audio_token_cost(frames: int, config: AlmosaicConfig, tokenizer: Any) -> int:
    """How many tokens a clip of `frames` log-mel frames takes in a prompt, time cues included."""
    window_frames = config.audio_config.window_frames
    windows = -(-frames // window_frames)
    return len(clip_ids(windows, window_frames, config.queries, config.audio_token_id, tokenizer))


def until_answer_ends(pieces: Sequence[tuple[str, bool]], last: Mapping[str, str]) -> list[tuple[str, bool]]:
    """The pieces up to the end of the last answer's words, without what the template writes behind them."""
    if last["role"] != "assistant":
        raise AlmosaicError(
            f"expected an assistant turn at the end to continue, found {last['role']}; "
            "add_generation_prompt asks for a new answer"
        )
    final = max((index for index, (_, trained) in enumerate(pieces) if trained), default=0)
    written = pieces[final][0]
    # Some templates strip what they are given.
    for words in (last["content"], last["content"].strip()):
        if pieces[final][1] and (start := written.find(words)) >= 0:
            return [*pieces[:final], (written[: start + len(words)], True)]
    raise AlmosaicError(
        "the chat template rewrites the last answer, so it cannot be continued; ask for a new one"
    )


def add_audio_token(tokenizer: Any) -> int:
    """Id of `<|audio|>` in a tokenizer, added as a special token where it is missing.

    Raises:
        AlmosaicError: the tokenizer has no pad token.
    """
    if tokenizer.pad_token_id is None:
        raise AlmosaicError(
            "the tokenizer has no pad token, which batches need; set tokenizer.pad_token, "
            "for example to tokenizer.eos_token"
        )
    if AUDIO_TOKEN not in tokenizer.get_vocab():
        # Replacing is the default, and would turn the family's other extra tokens into ordinary ones.
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [AUDIO_TOKEN]}, replace_extra_special_tokens=False
        )
    return int(tokenizer.convert_tokens_to_ids(AUDIO_TOKEN))
