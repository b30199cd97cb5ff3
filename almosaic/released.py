"""Files of published weights to model folders of ours, with their front end, and back."""

import csv
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from almosaic.alm.ltu import WINDOW_FRAMES, with_final_norm
from almosaic.encoder import AudioMosaicConfig, AudioMosaicForAudioClassification, AudioMosaicModel
from almosaic.encoder.conversion import HEAD_WIDTH, from_released, to_released
from almosaic.encoder.matpac import WINDOW_FRAMES as MATPAC_WINDOWS
from almosaic.encoder.matpac import from_matpac, is_matpac, to_matpac
from almosaic.errors import AlmosaicError
from almosaic.features import FRONT_END_PRESETS, AudioMosaicFeatureExtractor, FrontEndSettings
from almosaic.loading import model_folder, model_type
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.released_alm import convert_released_alm, write_released_alm
from almosaic.training.checkpoints import WEIGHTS_FILE, whole_folder
from almosaic.weight_files import check_new_file, read_weights, write_weights

logger = logging.getLogger(__name__)

CLASSES = (AudioMosaicModel, AudioMosaicForPreTraining, AudioMosaicForAudioClassification)
SHIPPED_MIN_SAMPLES = 16_000  # what the preprocessing beside the released weights pads clips to


def convert_released(
    file: Path,
    out: Path,
    preset: str = "audioset",
    *,
    labels: Path | None = None,
    std_factor: float | None = None,
    heads: int | None = None,
    probe_layer: int | None = None,
    language_model: Path | None = None,
) -> None:
    """Write a published AudioMosaic checkpoint, or MATPAC encoder, as a model folder with its front end.

    Of preset `ltu`, a pretraining checkpoint becomes the encoder that LTU starts from, with `fc_norm` as its
    final norm.

    Args:
        file: safetensors, or a torch file, which is read without running code from it.
        out: a new or empty folder.
        preset: of the release: front end and kind of labels; `matpac` for an encoder of MATPAC or MATPAC++.
        labels: names of a classifier's classes, see `read_labels`.
        std_factor: 2 as in training, 1 as in the preprocessing shipped beside the released weights, which
            also pads clips below 16,000 samples; None = the preset's.
        heads: attention heads; of 64 channels, as published, when None.
        probe_layer: the 0-based block of a probe that reads one layer; no tensor tells it.
        language_model: folder of a Llama: the file is one of audio-language weights (preset `ltu`), and the
            model folder holds all of them, adapters included.

    Raises:
        AlmosaicError: unreadable, not such a checkpoint, an unknown preset, labels that do not fit, or `out`
            is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlmosaicError(f"{out} exists and is not an empty folder; choose another or clear it")
    if language_model is not None:
        if preset != "ltu" or labels is not None or probe_layer is not None:
            raise AlmosaicError(
                f"expected preset ltu without labels and probe_layer beside a language model, found preset "
                f"{preset}, labels {labels} and probe_layer {probe_layer}: change one of them"
            )
        extractor = _front_end(WINDOW_FRAMES, preset, std_factor)
        convert_released_alm(file, out, language_model, extractor, heads=heads)
        return
    if preset == "matpac" and (std_factor, probe_layer) != (None, None):
        raise AlmosaicError(
            f"expected neither std_factor nor probe_layer with preset matpac, found {std_factor} and "
            f"{probe_layer}: leave them out"
        )
    config, weights = _converted(file, preset, heads, probe_layer)
    if labels is not None:
        _name_classes(config, read_labels(labels), labels)
    extractor = _front_end(config.window_frames, preset, std_factor)
    model_class = next(built for built in CLASSES if built.__name__ == config.architectures[0])
    with torch.device("meta"):  # nothing of it is drawn: the file has every tensor
        model = model_class(config)
    model.load_state_dict({key: _single(value) for key, value in weights.items()}, assign=True)
    with whole_folder(out) as temporary:
        model.save_pretrained(temporary)
        extractor.save_pretrained(temporary)


def _converted(
    file: Path, preset: str, heads: int | None, probe_layer: int | None
) -> tuple[AudioMosaicConfig, dict[str, Tensor]]:
    """Config and state dict of ours; what does not fit is told with the file's name."""
    tensors = read_weights(file)
    try:
        if preset == "matpac":
            return from_matpac(tensors, num_attention_heads=heads)
        if is_matpac(tensors):
            raise AlmosaicError(
                f"expected AudioMosaic weights for preset {preset}, found MATPAC's: give preset matpac"
            )
        if preset == "ltu":
            tensors = with_final_norm(tensors)
        return from_released(tensors, preset, num_attention_heads=heads, readout_layer=probe_layer)
    except AlmosaicError as error:
        raise AlmosaicError(f"{file}: {error}") from None


def _single(value: Tensor) -> Tensor:
    """A tensor of its own memory, in single precision where it is a floating one."""
    return value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)


def _front_end(window_frames: int, preset: str, std_factor: float | None) -> AudioMosaicFeatureExtractor:
    usual = FRONT_END_PRESETS[preset].window_frames
    if window_frames not in (usual, *(MATPAC_WINDOWS if preset == "matpac" else ())):
        logger.info(
            "the weights are for windows of %d frames, releases of preset %s have %d: check --preset",
            *(window_frames, preset, usual),
        )
    chosen: dict[str, Any] = {"preset": preset, "window_frames": window_frames}
    if std_factor is not None:
        chosen["std_factor"] = std_factor
    if std_factor == 1.0:
        chosen["min_samples"] = SHIPPED_MIN_SAMPLES
    return AudioMosaicFeatureExtractor.from_settings(FrontEndSettings.model_validate(chosen))


def _name_classes(config: AudioMosaicConfig, names: list[str], source: Path) -> None:
    if config.architectures != [AudioMosaicForAudioClassification.__name__]:
        raise AlmosaicError(
            f"{source}: expected a classifier to name the classes of, found the weights of "
            f"{config.architectures[0]}: leave labels out"
        )
    if len(names) != config.num_labels:
        raise AlmosaicError(
            f"{source}: expected {config.num_labels} labels, as many as the weights have classes, "
            f"found {len(names)}: give the list of this data set"
        )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}


def read_labels(path: Path) -> list[str]:
    """Class names in order: a CSV with columns index and display_name, or label, or one name a line.

    Raises:
        AlmosaicError: no such file, no names in it, or an index that is left out, twice or no number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AlmosaicError(
            f"{path}: expected a text file of labels, found none ({error}): give another"
        ) from None
    rows = list(csv.reader(lines))
    if rows and {"index", "display_name"} <= set(rows[0]):
        number, name = rows[0].index("index"), rows[0].index("display_name")
        full = [row for row in rows[1:] if len(row) == len(rows[0])]
        named = {row[number].strip(): row[name].strip() for row in full}
        names = [named.get(str(index), "") for index in range(len(rows) - 1)]
    elif rows and "label" in rows[0]:
        names = [dict(zip(rows[0], row, strict=False)).get("label", "").strip() for row in rows[1:]]
    else:
        names = [line.strip() for line in lines]
    if not names or "" in names:
        missing = f"none for class {names.index('')}" if names else "none"
        raise AlmosaicError(
            f"{path}: expected one label for each class from 0 on, found {missing}: use a CSV with columns "
            "index, mid, display_name, one with a column label, or one label a line"
        )
    return names


def write_released(run_or_model: str | Path, file: Path) -> None:
    """Write a model under the published key names; whole or not at all.

    An encoder without norms before its blocks is written as MATPAC's are. Of an audio-language model in the
    form of LTU, encoder, projector and adapters are written.

    Args:
        run_or_model: a model folder, or a run, whose last stage is taken.
        file: a new .safetensors, .pt, .pth or .bin file.

    Raises:
        AlmosaicError: no such model, an audio-language model of another form, a suffix that is none of
            these, or `file` exists.
    """
    check_new_file(file)
    folder = model_folder(run_or_model)
    if model_type(folder) != "audiomosaic":
        write_released_alm(folder, file)
        return
    config = AudioMosaicConfig.from_pretrained(folder)
    back = to_released if config.patch_norm or config.pre_norm else to_matpac
    released = back(config, read_weights(folder / WEIGHTS_FILE))
    if config.hidden_size != HEAD_WIDTH * config.num_attention_heads:
        logger.info(
            "%d heads of %d channels, which no tensor tells: convert back with --heads %d",
            *(config.num_attention_heads, config.hidden_size // config.num_attention_heads),
            config.num_attention_heads,
        )
    write_weights(released, file)
