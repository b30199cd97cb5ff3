"""Files in, files out: embeddings and answers for many clips."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almosaic.alm import AlmosaicForConditionalGeneration
from almosaic.data.formats import question
from almosaic.data.sources import audio_below
from almosaic.errors import AlmosaicError
from almosaic.inference import embed, generate
from almosaic.loading import load_model
from almosaic.training.callbacks import quiet_library

EMBEDDING_SUFFIXES = (".safetensors", ".npz", ".jsonl")

Advance = Callable[[], object]


def audio_files(arguments: Sequence[str]) -> list[str]:
    """Files as given, and for a folder the audio files in it in order of their names, each once.

    Raises:
        AlmosaicError: a path does not exist, or a folder holds no audio.
    """
    found: dict[str, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found |= dict.fromkeys(audio_below(path))
        elif path.is_file():
            found[argument] = None
        else:
            raise AlmosaicError(f"no file or folder {argument}")
    return list(found)


def embed_files(
    model_folder: str,
    sources: Sequence[str],
    out: Path,
    *,
    layer: int | None = None,
    pooling: str | None = None,
    batch_size: int = 8,
    progress: Advance,
) -> list[str]:
    """Write one vector [D] per clip; what `out` holds depends on its suffix.

    `.npz` and `.safetensors` hold `embeddings` [clips, D], with the paths in `ids` (in the metadata of
    safetensors, as JSON); `.jsonl` holds one `{"id", "embedding"}` a line.

    Returns:
        one line for each clip that could not be used.

    Raises:
        AlmosaicError: unknown suffix, no such layer or model, or no usable clip at all.
    """
    if out.suffix not in EMBEDDING_SUFFIXES:
        raise AlmosaicError(f"{out}: expected a name that ends in .safetensors, .npz or .jsonl")
    with quiet_library():
        model, _ = load_model(model_folder)
    failures: list[tuple[str, str]] = []
    ids: list[str] = []
    vectors: list[NDArray[np.float32]] = []
    for name, vector in embed(model, sources, layer, batch_size, failures=failures, pooling=pooling):
        ids.append(name)
        vectors.append(vector)
        progress()
    if not ids:
        raise AlmosaicError(f"none of {len(sources)} clips can be used; the first: {failures[0][1]}")
    partial = out.with_name(f"tmp-{out.name}")
    _write_embeddings(partial, ids, np.stack(vectors))
    partial.replace(out)
    return [reason for _, reason in failures]


def _write_embeddings(path: Path, ids: list[str], embeddings: NDArray[np.float32]) -> None:
    if path.suffix == ".npz":
        with path.open("wb") as file:
            np.savez(file, ids=np.array(ids), embeddings=embeddings)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({"embeddings": embeddings}, path, metadata={"ids": json.dumps(ids)})
    else:
        rows = ({"id": name, "embedding": row.tolist()} for name, row in zip(ids, embeddings, strict=True))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def generate_files(
    model_folder: str,
    sources: Sequence[str],
    prompt: str,
    out: Path | None,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    report: Callable[[str], None],
    progress: Advance,
) -> list[str]:
    """Ask the same about every clip; answers go to `out`, which is continued, or to `report`.

    Each answer is written as soon as its batch is done, as `{"id", "prompt", "prediction"}` on its own line.

    Returns:
        one line for each clip that could not be answered; it is tried again when the command is repeated.

    Raises:
        AlmosaicError: no audio-language model, or `out` holds something else than answers to this prompt.
    """
    answered = set() if out is None else continue_answers(out, prompt)
    waiting = [source for source in sources if source not in answered]
    for _ in range(len(sources) - len(waiting)):
        progress()
    if not waiting:
        return []
    with quiet_library():
        model, processor = load_model(model_folder, kind="alm")
    if not isinstance(model, AlmosaicForConditionalGeneration):
        raise AlmosaicError(
            f"{model_folder} is an encoder, which cannot answer; give an audio-language model"
        )
    sampling: dict[str, Any] = {"temperature": temperature} if temperature else {}
    asked = ({"id": path, "messages": [question(prompt)], "audios": [path]} for path in waiting)
    failed: list[str] = []
    for batch in _batches(asked, batch_size):
        answers = generate(
            model, processor, batch, batch_size=batch_size, max_new_tokens=max_new_tokens, **sampling
        )
        for answer in answers:
            progress()
            if "error" in answer:
                failed.append(answer["error"])
            elif out is None:
                report(f"{answer['id']}\t{answer['prediction']}")
            else:
                _append(out, {"id": answer["id"], "prompt": prompt, "prediction": answer["prediction"]})
    return failed


def _batches(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, size)):
        yield batch


def _append(out: Path, record: dict[str, Any]) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def continue_answers(out: Path, prompt: str) -> set[str]:
    """Ids that `out` already answers; a last line that was cut off is removed.

    Raises:
        AlmosaicError: a line is no answer, or an answer to another prompt.
    """
    if not out.is_file():
        return set()
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    answered = set()
    for number, line in enumerate(whole.decode("utf-8", errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
            name, about = record["id"], record["prompt"]
        except (ValueError, TypeError, KeyError):
            raise AlmosaicError(f"{out}:{number} is not an answer of ours; choose another file") from None
        if about != prompt:
            raise AlmosaicError(f"{out} holds answers to {about!r}, not to {prompt!r}; choose another file")
        answered.add(name)
    if len(whole) < len(content):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return answered
