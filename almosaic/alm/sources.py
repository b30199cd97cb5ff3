"""Where frozen language model weights come from: a path and a sha256, kept in place of the weights."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from almosaic.errors import AlmosaicError

Source = dict[str, str]
_HUB_SECONDS = 5.0


def describe_source(language_model: Any) -> Source | None:
    """Folder or hub name that a language model came from, with its hash; None when its weights differ."""
    name = str(language_model.name_or_path or "")
    if not name:
        return None
    folder = weights_folder(name)
    if not _holds_words_of(folder, language_model):
        return None
    path = str(folder.resolve()) if Path(name).is_dir() else name
    return {"path": path, "sha256": weights_sha256(folder)}


def _holds_words_of(folder: Path, language_model: Any) -> bool:
    """Whether the word embeddings are those on disk; a fresh model of a known configuration has others."""
    words = language_model.get_input_embeddings().weight
    name = next(name for name, parameter in language_model.named_parameters() if parameter is words)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stream:
            if name in stream.keys():  # noqa: SIM118 (not a dictionary)
                stored = stream.get_tensor(name).to(words.dtype)
                return stored.shape == words.shape and torch.equal(stored, words.detach().cpu())
    return False


def portable_source(source: Source | None, folder: Path) -> Source | None:
    """The source as written into `folder`: a local path becomes relative, so that a run can be moved."""
    if source is None or not Path(source["path"]).is_absolute():
        return source
    return {**source, "path": os.path.relpath(source["path"], folder.resolve())}


def locate_source(source: Source, folder: Path) -> Source:
    """Resolve the source that `folder` names, and compare hashes.

    Raises:
        AlmosaicError: the weights are not there, or are not those that the folder was trained on.
    """
    local = folder.resolve() / source["path"]
    name = str(local.resolve()) if local.is_dir() else source["path"]
    found = weights_sha256(weights_folder(name))
    if found != source["sha256"]:
        trained_on = _kind(folder, "text_config")
        raise AlmosaicError(
            f"{folder} was trained on a {trained_on} with sha256 {source['sha256'][:12]}, but {name} is a "
            f"{_kind(weights_folder(name))} with {found[:12]}; give the original weights"
        )
    return {"path": name, "sha256": found}


def _kind(folder: Path, part: str | None = None) -> str:
    """Family and width of a language model, by the config.json of its folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config if part is None else config[part]
    width = config.get("hidden_size", config.get("n_embd"))
    return f"{config['model_type']} of width {width}"


def reach(name: str) -> bool:
    """Whether a model has to come from the local cache, since the hub does not answer; False for a folder.

    One short question, where loading would ask again and again for a minute.

    Raises:
        AlmosaicError: no such folder; or no such hub name, here or there.
    """
    if Path(name).is_dir():
        return False
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise AlmosaicError(
            f"language model {name!r} cannot be had: no such folder; give a folder or a hub name"
        )
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except Exception as error:  # the hub, the network and the name each fail in their own way
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return True
        raise AlmosaicError(
            f"language model {name!r} cannot be had: it is neither a folder nor in the local hub cache, and "
            f"the hub does not give it ({' '.join(str(error).split())[:120]}); give a folder, download it "
            "first, or train {name: tiny}"
        ) from error
    return False


def weights_folder(name: str) -> Path:
    """Folder of a local path, or of a hub name in the local cache; AlmosaicError when neither is there."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:
        raise AlmosaicError(
            f"the language model {name} is neither a folder nor in the local hub cache; "
            "restore it, download it, or say where it is with load_model(..., language_model=FOLDER)"
        ) from error


def weights_sha256(folder: Path) -> str:
    """Hash of all weight files of a folder, ordered by name; AlmosaicError when there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise AlmosaicError(f"{folder} holds no *.safetensors weights; save the language model there first")
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
