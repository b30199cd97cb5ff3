"""Chat data as found in the wild, read into one form: messages of typed parts and their clips, in order.

| format | a record has |
|---|---|
| messages | `messages` or `conversations` of role and content: `<audio>` tags and `audios`, or typed parts |
| sharegpt | `conversations` of from and value, `<audio>` tags and `audios` |
| vila | the same with `<sound>` or `<sound-1>` tags and `sound` (VILA, Audio Flamingo 3) |
| pairs | `conversation` of human and assistant, `<audio>` tags and `audios` (ms-swift) |
| query | `query`, `response`, `history`, `system`, `<audio>` tags and `audios` (ms-swift) |
| alpaca | `instruction`, `input`, `output`, `history`, `system`, `<audio>` tags and `audios` |
| openaqa | `instruction`, `input`, `audio_id`, `output` (LTU, GAMA) |
| salmonn | `path`, `text`, `task`, `Q`, `expand_wav`, listed or under `annotation` |
| slam | `key`, `source`, `target`, `prompt` (SLAM-LLM) |
| audio_flamingo_2 | `name`, `prompt`, `output`, under `data` of a manifest with `split_path` |
| mdl | `audio`, `system_prompt`, `user_prompt`, `prediction`, a table (mdl-toolkit) |
| captions | `audio`, `caption`, `prompt`, a table of your own |
"""

import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypedDict

from almosaic.data.chat_forms import FORMS, Format, recognise
from almosaic.data.chat_turns import Clip, Turn
from almosaic.data.row_files import RowFile
from almosaic.errors import AlmosaicError

Message = dict[str, Any]
# What stands for a clip here and elsewhere; left over in a text, it would be learned as a word.
_PLACEHOLDER = re.compile(r"<\|audio\|>|<\|AUDIO\|>|<audio>|<sound(?:-\d+)?>|<SpeechHere>")
_REMOTE = ("data:", "http://", "https://")


class ChatRow(TypedDict):
    """One conversation; the n-th audio part of `messages` is the n-th of `audios`."""

    id: str
    messages: list[Message]
    audios: list[str]


def question(text: str, clips: int = 1) -> Message:
    """A user's turn in the one order used in training, evaluation and the demo: the clips, then the text."""
    return {"role": "user", "content": [{"type": "audio"}] * clips + [{"type": "text", "text": text}]}


class ChatRows:
    """The conversations of one or several files, each read and checked when it is asked for.

    Args:
        paths: the files; `.jsonl` and `.json` lists may be larger than memory, see `row_files`.
        audio_root: folder that relative audio paths start from; None = the folder of each file, "" = none.
        form: what the records look like, `auto` = recognised from the keys of each.
        prompt: asked of clips whose records bring no question.
        answers: require an assistant's turn in every row, as training does.

    Raises:
        AlmosaicError: a file that cannot be used; when it is asked for, a row. One line with the place.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        audio_root: str | Path | None = None,
        form: Format = "auto",
        prompt: str | None = None,
        answers: bool = True,
    ) -> None:
        listed = [paths] if isinstance(paths, str | Path) else paths
        self.files = [RowFile(path) for path in listed]
        self.roots = [str(file.path.parent if audio_root is None else audio_root) for file in self.files]
        self.ends = list(accumulate(map(len, self.files)))
        self.form, self.prompt, self.answers = form, prompt, answers

    def __len__(self) -> int:
        return self.ends[-1]

    def __iter__(self) -> Iterator[ChatRow]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> ChatRow:
        number, own = self._find(index)
        record, place = self.files[number][own], self.files[number].place(own)
        form = FORMS[recognise(record, self.form, place)]
        turns = form.read(record, place, self.prompt)
        if self.answers and not any(turn.role == "assistant" for turn in turns):
            wanted = f"the key {form.answer}" if form.answer else "an assistant's turn"
            raise AlmosaicError(
                f"{place}: expected {wanted} to learn from, found none; the keys are {', '.join(record)} "
                "(questions alone are for generate)"
            )
        name = next((record[key] for key in ("id", "key") if record.get(key) is not None), index)
        return _row(str(name), turns, self.roots[number], place)

    def place(self, index: int) -> str:
        """`file:line` of a row."""
        number, own = self._find(index)
        return self.files[number].place(own)

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self.ends, index)
        return number, index - (self.ends[number] - len(self.files[number]))


def read_chat(
    path: str | Path,
    audio_root: str | Path | None = None,
    answers: bool = True,
    form: Format = "auto",
    prompt: str | None = None,
) -> list[ChatRow]:
    """All conversations of a file that fits into memory; arguments and errors as in `ChatRows`."""
    return list(ChatRows(path, audio_root, form, prompt, answers))


def _row(name: str, turns: Sequence[Turn], root: str, place: str) -> ChatRow:
    messages: list[Message] = []
    audios: list[str] = []
    for number, turn in enumerate(turns, start=1):
        parts: list[Message] = []
        for piece in turn.pieces:
            if isinstance(piece, Clip):
                audios.append(_resolved(piece.name, root))
                parts.append({"type": "audio"})
            elif found := _PLACEHOLDER.search(piece):
                raise AlmosaicError(
                    f"{place}, message {number}: the text holds {found[0]}, which stands for no clip here; "
                    "remove it, or name the format whose tag it is"
                )
            else:
                parts.append({"type": "text", "text": piece})
        spoken = [part["text"] for part in parts if "text" in part]
        if turn.role == "assistant" and len(spoken) < len(parts):
            raise AlmosaicError(
                f"{place}, message {number}: only users and the system can send audio, found it in an answer"
            )
        plain = len(spoken) == len(parts)
        messages.append({"role": turn.role, "content": "".join(spoken) if plain else parts})
    return {"id": name, "messages": messages, "audios": audios}


def _resolved(name: str, root: str) -> str:
    """The path of a clip below the root; absolute paths, data URIs and addresses stay as they are."""
    if name.startswith(_REMOTE):
        return name
    name = name.removeprefix("file://")
    return name if os.path.isabs(name) else os.path.join(root, name.removeprefix("./"))
