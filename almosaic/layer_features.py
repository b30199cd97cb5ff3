"""What every block of a frozen encoder makes of a clip: two means per block, on disk, computed once.

For each clip and each block, and once more for the encoder's output, the cache holds

- `means`: the pooled tokens; enough for linear probes, neighbours and weighted sums of blocks,
- `normed`: the pooled tokens after a LayerNorm without weights. LayerNorm with weights and then the mean is
  an affine map of it, so that a probe with a LayerNorm of its own per block is trained on it exactly.

A long clip is the mean of its windows, each counted by its real frames. Windows are batched across clips.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from almosaic.data.clips import ClipSource
from almosaic.encoder import AudioMosaicConfig
from almosaic.errors import AlmosaicError
from almosaic.feature_cache import HEADER_FILE, cache_key, writing
from almosaic.log_mel import NUM_MEL_BINS, log_mel_fbank
from almosaic.masking import PatchGrid
from almosaic.pooling import Pooling, check_layer, token_weights, window_weights

FORMAT = 1
ARRAYS = ("means", "normed")
WINDOWS = 32  # at a time through an encoder


class LayerFeatures:
    """`means` and `normed` [n, E, D] float32 of n clips; E = blocks + 1, the last entry is the output."""

    def __init__(self, folder: Path) -> None:
        header = json.loads((folder / HEADER_FILE).read_text(encoding="utf-8"))
        self.folder = folder
        self.key: str = header["key"]
        self.means, self.normed = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS)
        if not list(self.means.shape) == list(self.normed.shape) == header["shape"]:
            raise ValueError("an array has another shape than its header says")

    def __len__(self) -> int:
        return len(self.means)

    def at(self, layer: int | None) -> NDArray[np.float32]:
        """Means [n, D] of one block counted from 0, or of the encoder's output (None)."""
        return np.asarray(self.means[:, -1 if layer is None else layer])


class Reader(Protocol):
    """Something that turns the log-mel of clips into rows of features."""

    kind: tuple[Any, ...]  # readers of one kind share a clip's log-mel
    rows: tuple[int, int]  # E, D

    def key(self, clips: ClipSource) -> str:
        """A hash of everything that the rows depend on."""
        ...

    def log_mel(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Waveform [1, S] to log-mel [1, T', F] and frames [1], on the reader's device."""
        ...

    def read(self, index: int, log_mel: Tensor, frames: Tensor, arrays: Mapping[str, Any]) -> None:
        """Take one clip; its row appears in `arrays` now or at a later call."""
        ...

    def finish(self, arrays: Mapping[str, Any]) -> None:
        """Write what is still waiting."""
        ...


class EncoderReader:
    """Every block of a frozen encoder.

    Args:
        tower: an `AudioMosaicModel`, on the device to compute on; its mode is left as found.
        extractor: its front end.
        pooling: over the tokens of a window.
        layer: a block that is going to be asked for; checked now, before anything is computed.

    Raises:
        AlmosaicError: the encoder has no such block.
    """

    def __init__(
        self, tower: Any, extractor: Any, pooling: Pooling = "mean", layer: int | None = None
    ) -> None:
        check_layer(tower, layer)
        self.tower, self.extractor, self.pooling = tower, extractor, pooling
        bank = (extractor.front_end, extractor.num_mel_bins)
        self.kind = (tower.device, *bank, extractor.min_samples, extractor.max_samples)
        self.rows = (tower.config.num_hidden_layers + 1, tower.config.hidden_size)
        self._waiting: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def key(self, clips: ClipSource) -> str:
        """A hash of weights, architecture, front end, pooling and clips."""
        shape = architecture(self.tower.config)
        own = cache_key(self.tower, self.extractor, clips, len(clips), None)
        return hashlib.sha256(f"{FORMAT} {self.pooling} {shape} {own}".encode()).hexdigest()

    def log_mel(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """As the front end makes it: its shortest and longest clip count."""
        found: tuple[Tensor, Tensor] = self.extractor.log_mel(
            waveform.to(self.tower.device), [waveform.shape[1]]
        )
        return found

    def read(self, index: int, log_mel: Tensor, frames: Tensor, arrays: Mapping[str, Any]) -> None:
        """Cut into windows; a batch is encoded when enough of them wait."""
        features, mask, windows = self.extractor.cut(log_mel, frames)
        self._waiting.append((index, features, mask, window_weights(mask, windows)))
        if sum(len(entry[1]) for entry in self._waiting) >= WINDOWS:
            self.finish(arrays)

    @torch.inference_mode()
    def finish(self, arrays: Mapping[str, Any]) -> None:
        """Encode the waiting windows and add each to the row of its clip."""
        if not self._waiting:
            return
        owners = [index for index, features, _, _ in self._waiting for _ in range(len(features))]
        features = torch.cat([features for _, features, _, _ in self._waiting])
        masks = torch.cat([mask for _, _, mask, _ in self._waiting])
        weights = torch.cat([weight for _, _, _, weight in self._waiting])
        self._waiting.clear()
        for start in range(0, len(owners), WINDOWS):
            part = slice(start, start + WINDOWS)
            found = self._encode(features[part], masks[part]) * weights[part, None, None, None]
            for owner, row in zip(owners[part], found.cpu().numpy(), strict=True):
                for array, values in zip(ARRAYS, row, strict=True):
                    arrays[array][owner] += values

    def _encode(self, features: Tensor, mask: Tensor) -> Tensor:
        """Pooled tokens [W, 2, E, D] of windows [W, T, F], as they are and after a plain LayerNorm."""
        config = self.tower.config
        training = self.tower.training
        self.tower.eval()
        output = self.tower(
            features.to(self.tower.dtype), input_features_mask=mask, output_hidden_states=True
        )
        self.tower.train(training)
        grid = PatchGrid.of(features.shape[1], features.shape[2], config.patch_size)
        weights = token_weights(self.pooling, mask, grid)
        rows: list[tuple[Tensor, Tensor]] = []
        for hidden in (*output.hidden_states[1:], output.last_hidden_state):
            tokens = hidden.float()
            normed = F.layer_norm(tokens, tokens.shape[-1:], eps=config.layer_norm_eps)
            rows.append((_pooled(weights, tokens), _pooled(weights, normed)))
        return torch.stack([torch.stack(kind, dim=1) for kind in zip(*rows, strict=True)], dim=1)


def architecture(config: AudioMosaicConfig) -> dict[str, Any]:
    """The fields of a config that decide what its encoder computes."""
    others = ("model_type", "objective", "readout", "initializer_range")
    names = sorted(name for name in AudioMosaicConfig.__annotations__ if not name.startswith(others))
    return {name: getattr(config, name) for name in names}


class HandReader:
    """Mean and deviation of the log-mel over time, per band: what a clip says without any training."""

    kind = (torch.device("cpu"), "kaldi", NUM_MEL_BINS, 0, None)
    rows = (1, 2 * NUM_MEL_BINS)

    def key(self, clips: ClipSource) -> str:
        """A hash of the clips."""
        return hashlib.sha256(f"{FORMAT} hand {clips.fingerprint()}".encode()).hexdigest()

    def log_mel(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """The whole clip's."""
        return log_mel_fbank(waveform)

    def read(self, index: int, log_mel: Tensor, frames: Tensor, arrays: Mapping[str, Any]) -> None:
        """One row at once."""
        own = log_mel[0, : int(frames)]
        row = torch.cat([own.mean(dim=0), own.std(dim=0, correction=0)]).cpu().numpy()
        for name in ARRAYS:
            arrays[name][index, 0] = row

    def finish(self, arrays: Mapping[str, Any]) -> None:
        """Nothing waits."""


def layer_features(
    readers: Mapping[str, Reader],
    clips: ClipSource,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, LayerFeatures]:
    """Features of all clips by every reader, from the cache below `folder` where it holds them.

    What is missing is computed in one pass over the clips: each is decoded and transformed once for all.

    Args:
        readers: by name.
        clips: a fixed set, read as of epoch 0.
        folder: parent of the cache folders.
        progress: called with (clips read, clips in all).

    Raises:
        AlmosaicError: a clip that cannot be used, or a disk without room; nothing is left half written.
    """
    keys = {name: reader.key(clips) for name, reader in readers.items()}
    places = {name: folder / f"layers-{key[:16]}" for name, key in keys.items()}
    found = {name: _open(places[name], key) for name, key in keys.items()}
    missing = {places[name]: name for name, features in found.items() if features is None}
    with ExitStack() as stack:
        arrays: dict[str, dict[str, Any]] = {}
        for place, name in missing.items():
            temporary = stack.enter_context(writing(place, "set probe.cache to another place"))
            shape = (len(clips), *readers[name].rows)
            arrays[name] = {array: _new_array(temporary / f"{array}.npy", shape) for array in ARRAYS}
            header = json.dumps({"key": keys[name], "shape": shape})
            (temporary / HEADER_FILE).write_text(header, encoding="utf-8")
        if missing:
            _read_all({name: readers[name] for name in arrays}, clips, arrays, progress)
    return {name: features or LayerFeatures(places[name]) for name, features in found.items()}


@torch.inference_mode()
def _read_all(
    readers: Mapping[str, Reader],
    clips: ClipSource,
    arrays: Mapping[str, Mapping[str, Any]],
    progress: Callable[[int, int], None] | None,
) -> None:
    """One pass over the clips for all readers; rows that are not finite are refused."""
    for index in range(len(clips)):
        waveform = torch.from_numpy(np.ascontiguousarray(clips.waveform(index, 0), np.float32))[None]
        spectra: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        for name, reader in readers.items():
            if reader.kind not in spectra:
                spectra[reader.kind] = reader.log_mel(waveform)
            reader.read(index, *spectra[reader.kind], arrays[name])
        if progress is not None:
            progress(index + 1, len(clips))
    for name, reader in readers.items():
        reader.finish(arrays[name])
        bad = int((~np.isfinite(arrays[name]["means"]).all(axis=(1, 2))).sum())
        if bad:
            raise AlmosaicError(
                f"{name}: expected finite features, found {bad} of {len(clips)} clips with NaN or infinity"
            )
        for array in arrays[name].values():
            array.flush()


def _pooled(weights: Tensor, tokens: Tensor) -> Tensor:
    """[W, L] x [W, L, D] -> [W, D]."""
    return torch.einsum("wl,wld->wd", weights, tokens)


def _new_array(path: Path, shape: tuple[int, ...]) -> Any:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


def _open(path: Path, key: str) -> LayerFeatures | None:
    """The features at `path` when they are whole and were made for `key`."""
    try:
        features = LayerFeatures(path)
    except (OSError, ValueError, KeyError):
        return None
    return features if features.key == key else None
