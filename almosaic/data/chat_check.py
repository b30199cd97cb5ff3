"""What is wrong with a chat file, one line for each bad row and clip, and how long its rows and clips are."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almosaic.audio import SAMPLING_RATE, decoded_seconds
from almosaic.data.chat_files import ChatFileDataset, root_of_clips
from almosaic.data.chat_forms import Format, may_be_chat
from almosaic.data.formats import ChatRow, ChatRows
from almosaic.data.row_files import LINES, SUFFIXES, RowFile
from almosaic.data.shards import ShardClips
from almosaic.errors import AlmosaicError, AudioError
from almosaic.features import frames_of

Progress = Callable[[int, int], object]
CountTokens = Callable[[Sequence[Any], Sequence[float]], int]
"""Tokens of a conversation's messages with clips of so many seconds."""

_PEEKED = 20  # records that tell a chat file from a manifest


def is_chat_file(path: Path) -> bool:
    """Whether a file holds conversations: by its name, and a `.jsonl` file by its first records."""
    suffix = path.suffix.lower()
    if suffix not in LINES:
        return suffix in SUFFIXES
    try:
        file = RowFile(path)
        records = [file[index] for index in range(min(_PEEKED, len(file)))]
    except AlmosaicError:
        return False
    return any(map(may_be_chat, records)) or not any("audio" in record for record in records)


def token_counter(processor: Any) -> CountTokens:
    """Counts as training does, by the processor of a model; AlmosaicError for what it would refuse."""

    def count(messages: Sequence[Any], seconds: Sequence[float]) -> int:
        frames = [frames_of(round(clip * SAMPLING_RATE)) for clip in seconds]
        return len(processor.encode(messages, frames).input_ids)

    return count


class ChatCheck:
    """Reads every row and decodes every clip of a chat file once.

    Args:
        path: the file.
        audio_root: folder of relative paths, None = the file's.
        form: of the records.
        archives: where the clips are, None = in files.
        answers: require an assistant's turn in every row, as training does.

    Attributes:
        complaints: one line for each bad row and each bad clip, with `file:line`.

    Raises:
        AlmosaicError: the file cannot be read at all.
    """

    def __init__(
        self,
        path: Path,
        audio_root: Path | None,
        form: Format,
        archives: ShardClips | None = None,
        answers: bool = True,
    ) -> None:
        root = root_of_clips(audio_root, archives)
        self.rows = ChatRows(path, root, form, answers=answers)
        self.archives = archives
        self.complaints: list[str] = []
        self.seconds = np.zeros(0)

    def run(self, progress: Progress, count: CountTokens | None = None) -> tuple[int, list[str]]:
        """Look at everything; how many rows and clips there are, and lines about their lengths."""
        prompts, answers, good = array("q"), array("q"), array("q")
        for index in range(len(self.rows)):
            try:
                row = self.rows[index]
            except AlmosaicError as error:
                self.complaints.append(str(error))
            else:
                good.append(index)
                prompts.append(_words(row, answers=False))
                answers.append(_words(row, answers=True))
            progress(index + 1, len(self.rows))
        chosen = _Chosen(self.rows, good)
        data = ChatFileDataset(chosen, self.archives)
        self._decode(data, chosen, progress)
        tokens = array("q") if count is None else self._tokens(data, chosen, count)
        items = len(self.rows) + len(data.source)
        return items, list(self._notes(data, chosen, prompts, answers, tokens)) if len(good) else []

    def _decode(self, data: ChatFileDataset, chosen: "_Chosen", progress: Progress) -> None:
        """Seconds of every clip, [C], NaN for one that cannot be used."""
        self.seconds = np.full(len(data.source), np.nan)
        mentions = np.bincount(data.clips, minlength=len(data.source))
        for clip in range(len(data.source)):
            try:
                self.seconds[clip] = decoded_seconds(data.source.stored(clip))
            except AudioError as error:
                again = f"; named {mentions[clip]} times" if mentions[clip] > 1 else ""
                self.complaints.append(f"{chosen.place(data.source.row(clip))}: {error}{again}")
            progress(len(self.rows) + clip + 1, len(self.rows) + len(data.source))

    def _tokens(self, data: ChatFileDataset, chosen: "_Chosen", count: CountTokens) -> "array[int]":
        """Tokens of every row whose clips can be used, -1 for others."""
        tokens = array("q")
        for index in range(len(chosen)):
            row = data[index]
            seconds = self.seconds[row["clips"]]
            tokens.append(-1)
            if not np.isnan(seconds).any():
                try:
                    tokens[-1] = count(row["messages"], seconds.tolist())
                except AlmosaicError as error:
                    self.complaints.append(f"{chosen.place(index)}: {error}")
        return tokens

    def _notes(
        self,
        data: ChatFileDataset,
        chosen: "_Chosen",
        prompts: "array[int]",
        answers: "array[int]",
        tokens: "array[int]",
    ) -> Iterator[str]:
        starts = np.concatenate([[0], data.ends[:-1]])
        silent, hours = int((data.ends == starts).sum()), np.nansum(self.seconds) / 3600
        yield f"{len(self.rows)} rows, {silent} without audio; {len(data.source)} clips, {hours:.2f} hours"
        yield f"words of the prompts of a row: {_spread(np.array(prompts))}"
        yield f"words of the answers of a row: {_spread(np.array(answers))}"
        words = np.array(prompts) + np.array(answers)
        yield f"most words: {words.max()} in {chosen.place(int(words.argmax()))}"
        heard = np.nan_to_num(self.seconds)
        if heard.any():
            yield f"seconds of a clip: {_spread(self.seconds[~np.isnan(self.seconds)], digits=2)}"
            sums = np.concatenate([[0.0], np.cumsum(heard[data.clips])])
            of_rows = sums[data.ends] - sums[starts]
            yield f"most audio: {of_rows.max():.2f} s in {chosen.place(int(of_rows.argmax()))}"
        counted = np.array(tokens)
        if (counted >= 0).any():
            yield f"tokens of a row: {_spread(counted[counted >= 0])}"
            yield f"most tokens: {counted.max()} in {chosen.place(int(counted.argmax()))}"


class _Chosen:
    """Some of the rows."""

    def __init__(self, rows: ChatRows, indices: "array[int]") -> None:
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> ChatRow:
        return self.rows[self.indices[index]]

    def place(self, index: int) -> str:
        """`file:line` of a row."""
        return self.rows.place(self.indices[index])


def _words(row: ChatRow, answers: bool) -> int:
    """Words of a row's answers, or of all else."""
    contents = [one["content"] for one in row["messages"] if (one["role"] == "assistant") == answers]
    parts = [content if isinstance(content, list) else [{"text": content}] for content in contents]
    return sum(len(part.get("text", "").split()) for content in parts for part in content)


def _spread(values: NDArray[Any], digits: int = 0) -> str:
    low, middle, high = values.min(), np.median(values), values.max()
    return f"min {low:.{digits}f}, median {middle:.{max(digits, 1)}f}, max {high:.{digits}f}"
