"""The README.md of an exported model: how to load it, its parts, its scores and its recipe."""

import json
from pathlib import Path
from typing import Any

from almosaic.alm import AlmosaicForConditionalGeneration
from almosaic.encoder import AudioMosaicForAudioClassification


def model_card(model: Any, folder: Path) -> str:
    """A model card: how to load it, its parts, and the scores and recipe of its run where there is one."""
    run = _run_of(folder)
    sections = [_front_matter(model), _usage(model), "## Parts\n\n" + _parts(model)]
    if run is not None and (scores := _read(run / "results.json")):
        tables = _score_tables(json.loads(scores))
        sections.append(f"## Scores\n\nAs the run measured them, controls included.\n\n{tables}")
    if run is not None and (recipe := _read(run / "recipe.yaml")):
        sections.append(f"## Recipe\n\n```yaml\n{recipe.strip()}\n```")
    return "\n\n".join(sections) + "\n"


def _front_matter(model: Any) -> str:
    task, kind = "feature-extraction", "An audio encoder"
    if isinstance(model, AlmosaicForConditionalGeneration):
        task, kind = "audio-text-to-text", "An audio-language model"
    elif isinstance(model, AudioMosaicForAudioClassification):
        task, kind = "audio-classification", "A classifier of sounds"
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags:\n- almosaic\n- audio\n---\n\n"
        f"# {kind} made with almosaic"
    )


def _usage(model: Any) -> str:
    if isinstance(model, AlmosaicForConditionalGeneration):
        code = (
            "from almosaic import generate, load_model\n\n"
            'model, processor = load_model("path/to/this/folder")\n'
            'ask = [{"type": "audio"}, {"type": "text", "text": "What do you hear?"}]\n'
            'row = {"messages": [{"role": "user", "content": ask}], "audios": ["clip.wav"]}\n'
            'print(next(generate(model, processor, [row]))["prediction"])'
        )
    elif isinstance(model, AudioMosaicForAudioClassification):
        code = (
            "import almosaic.encoder  # makes the library know this kind of model\n"
            "from almosaic import load_audio\n"
            "from transformers import pipeline\n\n"
            'classify = pipeline("audio-classification", model="path/to/this/folder")\n'
            'print(classify(load_audio("clip.wav")))  # mono at 16 kHz, any length'
        )
    else:
        code = (
            "from almosaic import embed, load_model\n\n"
            'model, front_end = load_model("path/to/this/folder")\n'
            'for name, vector in embed(model, ["clip.wav"], feature_extractor=front_end):\n'
            "    print(name, vector.shape)"
        )
    return f"```python\n{code}\n```"


def _parts(model: Any) -> str:
    listens = isinstance(model, AlmosaicForConditionalGeneration)
    tower = model.config.audio_config if listens else model.config
    lines = [
        f"- audio encoder: {tower.num_hidden_layers} blocks of width {tower.hidden_size}, "
        f"windows of {tower.window_frames} frames"
    ]
    if isinstance(model, AudioMosaicForAudioClassification):
        lines.append(f"- head: {model.config.num_labels} classes on the read-out {model.config.readout}")
    if listens:
        config = model.config
        lines.append(f"- projector: {config.projector['name']}, {config.queries} audio tokens per window")
        lines.append(
            f"- language model: {config.text_config.model_type}, width {config.text_config.hidden_size}"
        )
        if config.lora is not None:
            lines.append(f"- LoRA adapters of rank {config.lora['rank']}, not merged")
    lines.append(f"- {model.num_parameters():,} parameters")
    return "\n".join(lines)


def _score_tables(results: dict[str, Any]) -> str:
    """One Markdown table per kind of score: rows as they are, nested numbers as name and value."""
    tables: list[str] = []
    for kind, content in results.items():
        if kind in ("schema_version", "about") or not content:
            continue
        if isinstance(content, list):
            columns = list(dict.fromkeys(name for row in content for name in row if _text(row[name])))
            rows = [[_text(row.get(name)) for name in columns] for row in content]
        else:
            columns, rows = [kind, "value"], [[name, text] for name, text in _flat(content) if text]
        lines = [columns, ["---"] * len(columns), *rows]
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables)


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Numbers of nested results as (dotted name, text)."""
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{name}.{key}".strip("."))]
    return [] if isinstance(value, bool | str) else [(name, _text(value))]


def _text(value: Any) -> str:
    """A number or a name as a table shows it, empty for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def _run_of(folder: Path) -> Path | None:
    """The run that a model folder belongs to: `run/stages/id/model`, or a run of one stage `run/model`."""
    for parent in folder.resolve().parents[:3]:
        if (parent / "recipe.yaml").is_file():
            return parent
    return None


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
