"""Patch tokens of a frozen encoder, computed once per clip and read from a memory-mapped file afterwards."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from almosaic.data.clips import ClipSource
from almosaic.data.collate import pad_waveforms
from almosaic.errors import AlmosaicError, AudioError
from almosaic.features import frames_of

TOKENS_FILE = "tokens.npy"
HEADER_FILE = "header.json"
FORMAT = 1


class FeatureCache:
    """`cache[i]` is the tokens [W, Tp, Fp, D] of clip i, float16; a clip that could not be read has none.

    The folder's name holds a hash of the encoder's weights, the front end, the layer and the clips, and the
    header repeats it: a cache made for anything else is never used.
    """

    def __init__(self, folder: Path) -> None:
        header = json.loads((folder / HEADER_FILE).read_text(encoding="utf-8"))
        self.folder = folder
        self.key: str = header["key"]
        self.bad: dict[int, str] = {int(index): reason for index, reason in header["bad"].items()}
        self._frames: list[int] = header["frames"]
        self._starts = np.concatenate([[0], np.cumsum(header["windows"], dtype=np.int64)])
        self._tokens = np.load(folder / TOKENS_FILE, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> NDArray[np.float16]:
        return np.asarray(self._tokens[self._starts[index] : self._starts[index + 1]])

    def frames(self, index: int) -> int:
        """Log-mel frames of a clip; 0 where it could not be read."""
        return self._frames[index]

    @classmethod
    def build(
        cls,
        tower: Any,
        feature_extractor: Any,
        source: ClipSource,
        count: int,
        folder: Path,
        layer: int | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> "FeatureCache":
        """Open the cache of the first `count` clips below `folder`, or make it with one pass of the encoder.

        Args:
            tower: an `AudioMosaicModel`, on the device to compute on; its mode is left as found.
            feature_extractor: its front end.
            source: the clips, read as of epoch 0.
            count: how many of them.
            folder: parent of the cache folder.
            layer: 0-based block whose tokens are kept, None = the encoder's output.
            batch_size: clips at a time.
            progress: show a bar on stderr.

        Raises:
            AlmosaicError: the disk is full, or `count` is more than the source holds.
        """
        if not 0 < count <= len(source):
            raise AlmosaicError(f"expected to cache 1 to {len(source)} clips, found count {count}")
        key = cache_key(tower, feature_extractor, source, count, layer)
        path = folder / f"features-{key[:16]}"
        found = _open(path, key)
        if found is not None:
            return found
        bar = tqdm(total=count, desc="encoding clips", unit="clip", disable=not progress)
        with writing(path, "set cache_features: false") as temporary, bar:
            with (temporary / TOKENS_FILE).open("wb") as file:
                writer = _Writer(file, _token_shape(tower, feature_extractor))
                for start in range(0, count, batch_size):
                    indices = range(start, min(start + batch_size, count))
                    _encode(tower, feature_extractor, source, indices, layer, writer)
                    bar.update(len(indices))
                writer.close()
            (temporary / HEADER_FILE).write_text(json.dumps({"key": key, **writer.header}), encoding="utf-8")
        return cls(path)


def cache_key(
    tower: nn.Module, feature_extractor: Any, source: ClipSource, count: int, layer: int | None
) -> str:
    """sha256 of everything that the cached numbers depend on."""
    extractor = feature_extractor
    front_end: tuple[Any, ...] = (
        extractor.num_mel_bins,
        extractor.window_frames,
        extractor.mean,
        extractor.std,
        extractor.std_factor,
        extractor.long_clips,
        extractor.min_samples,
        extractor.max_samples,
    )
    if (others := (extractor.front_end, extractor.zeros_in)) != ("kaldi", "log_mel"):
        front_end += others  # only then: caches of before there was a choice stay valid
    digest = hashlib.sha256(f"{FORMAT} {layer} {count} {front_end} {source.fingerprint()}".encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _open(path: Path, key: str) -> FeatureCache | None:
    """The cache at `path` when it is whole and was made for `key`."""
    try:
        cache = FeatureCache(path)
    except (OSError, ValueError, KeyError):
        return None
    whole = cache.key == key and len(cache._tokens) == cache._starts[-1]
    return cache if whole else None


@contextmanager
def writing(path: Path, otherwise: str) -> Iterator[Path]:
    """A temporary folder that becomes `path` once it is whole and on the disk; `otherwise` ends its error."""
    temporary = path.with_name(f"tmp-{path.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except OSError as error:
        raise AlmosaicError(
            f"cannot write {path} ({error.strerror}); free some space or {otherwise}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Writer:
    """Appends windows to an `.npy` file whose length is only known at the end."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...]) -> None:
        self.file = file
        self.shape = shape
        self.header: dict[str, Any] = {"frames": [], "windows": [], "bad": {}}
        self._write_header()

    def add(self, tokens: NDArray[np.float16], frames: int) -> None:
        """Append one clip's windows [W, Tp, Fp, D]."""
        self.file.write(np.ascontiguousarray(tokens).tobytes())
        self.header["frames"].append(frames)
        self.header["windows"].append(len(tokens))

    def add_bad(self, index: int, reason: str) -> None:
        """Note a clip that could not be read."""
        self.header["frames"].append(0)
        self.header["windows"].append(0)
        self.header["bad"][index] = reason

    def close(self) -> None:
        """Write the true length; numpy leaves room for it in the header."""
        self.file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        shape = (sum(self.header["windows"]), *self.shape)
        described = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, described)


def _token_shape(tower: Any, feature_extractor: Any) -> tuple[int, ...]:
    size = tower.config.patch_size
    return (
        feature_extractor.window_frames // size,
        feature_extractor.num_mel_bins // size,
        tower.config.hidden_size,
    )


def _encode(
    tower: Any,
    feature_extractor: Any,
    source: ClipSource,
    indices: Sequence[int],
    layer: int | None,
    writer: _Writer,
) -> None:
    """Read, transform and encode a few clips, and append them in order."""
    waveforms: dict[int, NDArray[np.float32]] = {}
    reasons: dict[int, str] = {}
    for index in indices:
        try:
            waveforms[index] = source.waveform(index, 0)
        except AudioError as error:
            reasons[index] = str(error)
    tokens = _tokens(tower, feature_extractor, list(waveforms.values()), layer) if waveforms else []
    encoded = dict(zip(waveforms, tokens, strict=True))
    for index in indices:
        if index in encoded:
            writer.add(encoded[index], frames_of(len(waveforms[index])))
        else:
            writer.add_bad(index, reasons[index])


@torch.no_grad()
def _tokens(
    tower: Any, feature_extractor: Any, waveforms: list[NDArray[np.float32]], layer: int | None
) -> list[NDArray[np.float16]]:
    """Patch tokens [W, Tp, Fp, D] of each clip."""
    training = tower.training
    tower.eval()
    padded, lengths = pad_waveforms(waveforms)
    features, mask, windows = feature_extractor.featurize(padded.to(tower.device), lengths.to(tower.device))
    output = tower(features, input_features_mask=mask, output_hidden_states=layer is not None)
    tower.train(training)
    # hidden_states[0] is what enters block 0; the first token is CLS.
    hidden = output.last_hidden_state if layer is None else output.hidden_states[layer + 1]
    tokens = hidden[:, 1:].unflatten(1, _token_shape(tower, feature_extractor)[:2]).to(torch.float16)
    if not torch.isfinite(tokens).all():
        raise AlmosaicError("the encoder's tokens do not fit into float16; set cache_features: false")
    return [clip.cpu().numpy() for clip in tokens.split(windows.tolist())]
