"""Conversations from files."""

from collections.abc import Sequence

from torch.utils.data import Dataset

from almosaic.data.clips import FileClips
from almosaic.data.datasets import Conversation
from almosaic.data.formats import ChatRow


class ChatFileDataset(Dataset[Conversation]):
    """Conversations from `formats.read_chat`; the same in every epoch."""

    def __init__(self, rows: Sequence[ChatRow]) -> None:
        paths = dict.fromkeys(audio for row in rows for audio in row["audios"])
        number = {path: index for index, path in enumerate(paths)}
        self.source = FileClips(list(paths))
        self.rows: list[Conversation] = [
            {
                "id": row["id"],
                "messages": row["messages"],
                "clips": [number[audio] for audio in row["audios"]],
            }
            for row in rows
        ]

    def set_epoch(self, epoch: int) -> None:
        """Nothing depends on the epoch."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Conversation:
        return self.rows[index]
