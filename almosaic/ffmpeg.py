"""What libsndfile cannot read, through an ffmpeg process that sees its standard input and nothing else."""

import shutil
import struct
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from almosaic.errors import AudioError

# A playlist or a list of files inside the input can name no other protocol, so no file and no address.
# `cache` lets ffmpeg go back in a pipe: a phone's recording has its index at the end.
_INPUT = ("-protocol_whitelist", "pipe,cache", "-i", "cache:pipe:0", "-vn")
# AU is the one container with a header that needs no length and floats that need no scaling.
_OUTPUT = ("-c:a", "pcm_f32be", "-f", "au", "pipe:1")


def decode_with_ffmpeg(
    file: str | BinaryIO, name: str, seconds: float, reason: str
) -> tuple[NDArray[np.float32], int]:
    """The first `seconds` of a file as samples [S, channels], and their rate.

    Args:
        file: a path, or a file object that can be seeked.
        name: the clip in error messages.
        seconds: infinite = all of it.
        reason: why libsndfile does not read it.

    Raises:
        AudioError: ffmpeg is not installed, or cannot read it either.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise AudioError(
            f"{name}: not readable as audio ({reason}); convert it to WAV or FLAC, or install ffmpeg"
        )
    limit = () if seconds == np.inf else ("-t", f"{seconds:.6f}")
    command = [program, "-v", "repeat+error", "-xerror", *_INPUT, *limit, *_OUTPUT]
    if isinstance(file, str):
        with Path(file).open("rb") as stream:
            done = subprocess.run(command, stdin=stream, capture_output=True, check=False)
    else:
        file.seek(0)
        done = subprocess.run(command, input=file.read(), capture_output=True, check=False)
    if done.returncode != 0 or len(done.stdout) < 24:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise AudioError(
            f"{name}: not readable as audio ({reason}; ffmpeg: {said[0]}); convert it to WAV or FLAC"
        )
    offset, _, _, rate, channels = struct.unpack(">5I", done.stdout[4:24])
    return np.frombuffer(done.stdout[offset:], ">f4").astype(np.float32).reshape(-1, channels), rate


def mp4_seconds(file: str | BinaryIO) -> float | None:
    """The length in the header of an MP4 or M4A file, wherever the header stands; None for other files."""
    with Path(file).open("rb") if isinstance(file, str) else nullcontext(file) as stream:
        stream.seek(0)
        if stream.read(8)[4:] != b"ftyp":
            return None
        stream.seek(0)
        while len(head := stream.read(8)) == 8:
            size, name = struct.unpack(">I4s", head)
            if name == b"moov":
                return _movie_seconds(stream.read(40))
            if size == 1:  # the size follows, in eight bytes
                size = int.from_bytes(stream.read(8), "big") - 8
            if size < 8:
                return None
            stream.seek(size - 8, 1)
    return None


def _movie_seconds(box: bytes) -> float | None:
    """The length in a movie header box, in its form with four or with eight bytes; None where it has none."""
    if box[4:8] != b"mvhd" or len(box) < 40:
        return None
    rate, ticks = struct.unpack_from(">IQ", box, 28) if box[8] else struct.unpack_from(">II", box, 20)
    return ticks / rate if rate and ticks else None
