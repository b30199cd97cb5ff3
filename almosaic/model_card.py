"""The README.md of an exported model, from what it was made of: use, parts, data, stages, scores, limits."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from almosaic.alm import AlmosaicForConditionalGeneration
from almosaic.alm.sources import weights_folder
from almosaic.data.licences import NOT_STATED, DataSource, restrictions
from almosaic.encoder import AudioMosaicForAudioClassification
from almosaic.errors import AlmosaicError
from almosaic.evaluation.tables import headline, skipped, tables
from almosaic.model_usage import is_hub_name, usage
from almosaic.provenance import Provenance, StageRecord

MAX_ATTRIBUTIONS = 40  # more are counted, and listed in provenance.json


def model_card(model: Any, provenance: Provenance, *, adapter: bool = False) -> str:
    """A model card in Markdown, with the front matter that the hub reads."""
    base = provenance.language_model()
    found = {**_licences(provenance), **_base_licence(base)}
    sections = {
        "": f"{_title(model, adapter)}\n\n{_origin(provenance)}",
        "Use": usage(model, adapter),
        "Parts": _parts(model, base),
        "Training data": _data(provenance),
        "Licences": _licence_text(found, provenance) if provenance.stages else "",
        "Training": _training(provenance),
        "Scores": _scores(provenance.results),
        "Limits": _limits(model, provenance, found),
        "Recipe": f"```yaml\n{provenance.recipe.strip()}\n```" if provenance.recipe else "",
    }
    written = [(f"## {title}\n\n" if title else "") + text for title, text in sections.items() if text]
    return _front_matter(model, provenance, found, adapter) + "\n\n".join(written) + "\n"


def _title(model: Any, adapter: bool) -> str:
    if isinstance(model, AlmosaicForConditionalGeneration):
        kind = "audio-language model"
        what = (
            "It answers questions about recordings and describes them: an audio encoder hears windows of a "
            "clip, a projector turns them into tokens, and a language model reads those among the words."
        )
        if adapter:
            what += (
                " This folder is an adapter: everything that was trained, for a language model that it names."
            )
    elif isinstance(model, AudioMosaicForAudioClassification):
        kind, what = "classifier of sounds", "It scores every class that it knows for a recording."
    else:
        kind, what = "audio encoder", "It turns windows of sound into tokens and vectors; it has no head."
    article = "An" if kind[0] == "a" else "A"
    return f"# {article} {kind} made with almosaic\n\n{what}"


def _origin(provenance: Provenance) -> str:
    if not provenance.stages:
        return "Nothing is recorded of how it was trained."
    when = f", begun on {provenance.trained}" if provenance.trained else ""
    return f"The weights are those of stage `{provenance.stages[-1].id}` of its training run{when}."


def _front_matter(model: Any, provenance: Provenance, found: dict[str, list[str]], adapter: bool) -> str:
    """YAML of which every value is JSON, which YAML includes."""
    fields: dict[str, Any] = {"library_name": "peft" if adapter else "transformers"}
    tags = ["almosaic", "audio"]
    if isinstance(model, AlmosaicForConditionalGeneration):
        fields["pipeline_tag"] = "audio-text-to-text"
        tags += ["audio-captioning", "audio-question-answering", *(["lora"] if adapter else [])]
    elif isinstance(model, AudioMosaicForAudioClassification):
        fields["pipeline_tag"] = "audio-classification"
    else:
        fields["pipeline_tag"] = "feature-extraction"
    limited = _limited(found)
    if "non-commercial" in limited:
        fields |= {"license": "other", "license_name": "inherits-non-commercial-terms"}
    base = provenance.language_model()
    if base is not None and is_hub_name(base):
        fields |= {"base_model": [base], "base_model_relation": "adapter" if adapter else "finetune"}
    if names := sorted({_slug(source.name) for source, _ in provenance.data().values() if source.place}):
        fields["datasets"] = names
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, f"tags: {json.dumps(tags)}", "---", "", ""])


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-").lower()


def _parts(model: Any, base: str | None) -> str:
    config = model.config
    if not isinstance(model, AlmosaicForConditionalGeneration):
        rows = [["audio encoder", _encoder(config), _size(model)]]
        if isinstance(model, AudioMosaicForAudioClassification):
            rows.append(["head", f"{config.num_labels} classes on the read-out {config.readout}", "included"])
        return _table(["part", "what", "parameters"], rows)
    words = f"{config.text_config.model_type}, width {config.text_config.hidden_size}"
    words += f", from `{base}`" if base else ""
    lora = config.lora
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    rows = [
        ["audio encoder", _encoder(config.audio_config), _size(model.audio_tower)],
        ["projector", _projector(config), _size(model.multi_modal_projector)],
        ["language model", words, _size(model.language_model, sum(p.numel() for p in adapters))],
    ]
    if lora is not None:
        what = f"rank {lora['rank']}, alpha {lora['alpha']}, in the language model, not merged"
        rows.append(["LoRA adapters", what, f"{sum(p.numel() for p in adapters):,}"])
    return _table(["part", "what", "parameters"], rows)


def _encoder(config: Any) -> str:
    seconds = config.window_frames / 100
    return (
        f"{config.num_hidden_layers} x width {config.hidden_size}, windows of {config.window_frames} "
        f"frames ({seconds:g} s)"
    )


def _projector(config: Any) -> str:
    layer = "the output" if config.layer is None else f"block {config.layer}"
    return (
        f"{config.projector['name']}, {config.queries} audio tokens per window, from {layer} of the encoder"
    )


def _size(part: Any, without: int = 0) -> str:
    return f"{sum(p.numel() for p in part.parameters()) - without:,}"


def _data(provenance: Provenance) -> str:
    rows = []
    for source, stages in provenance.data().values():
        digest = provenance.hashes.get(source.place, "")
        count = "–" if source.rows is None else f"{source.rows:,}"
        place = f"`{Path(source.place).name}`" if source.place else ""
        about = [place, f"sha256 {digest[:12]}" if digest else "", source.note]
        rows.append([source.name, source.kind, count, ", ".join(stages), "; ".join(filter(None, about))])
    text = [_table(["source", "used as", "clips or rows", "stages", "file"], rows)] if rows else []
    if provenance.unknown:
        parts = ", ".join(f"`{Path(part).name}`" for part in provenance.unknown)
        text.append(f"Parts that were trained elsewhere, with nothing recorded: {parts}.")
    return "\n\n".join(text)


def _licences(provenance: Provenance) -> dict[str, list[str]]:
    """Name of a source -> its licences."""
    found: dict[str, list[str]] = {}
    for source, _ in provenance.data().values():
        found.setdefault(source.name, [])
        found[source.name] += [name for name in source.licenses if name not in found[source.name]]
    return found


def _base_licence(base: str | None) -> dict[str, list[str]]:
    """The licence that the language model's own card names."""
    if base is None:
        return {}
    try:
        card = weights_folder(base) / "README.md"
    except AlmosaicError:  # moved since training; the card then says that no licence is known
        return {base: []}
    head = card.read_text(encoding="utf-8").split("\n---", 1)[0] if card.is_file() else ""
    named = re.findall(r"^license(?:_name)?:\s*[\"']?([^\"'\s]+)", head, re.MULTILINE)
    return {base: named}


def _limited(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Kind of restriction -> the licences of all sources that have it."""
    return restrictions(name for names in found.values() for name in names)


def _licence_text(found: dict[str, list[str]], provenance: Provenance) -> str:
    """Rows by licence and source, what follows from them, and who made the recordings."""
    sources = [source for source, _ in provenance.data().values()]
    largest: dict[tuple[str, str], int] = {}
    for source in sources:
        for name, count in source.licenses.items():
            largest[source.name, name] = max(count, largest.get((source.name, name), 0))
    rows = [[name, licence, f"{count:,}"] for (name, licence), count in largest.items()]
    base = provenance.language_model()
    if base is not None:
        rows.append([f"language model {base}", ", ".join(found.get(base, [])) or NOT_STATED, ""])
    text = [_table(["source", "licence", "clips or rows"], rows)] if rows else []
    limited = _limited(found)
    for restriction, names in limited.items():
        holders = sorted(source for source, own in found.items() if set(own) & set(names))
        text.append(f"**{restriction}**: {', '.join(names)}, in {', '.join(holders)}.")
    verdict = (
        "Recordings or weights under non-commercial terms went into it, so no licence that allows commercial "
        "use is claimed for these weights."
        if "non-commercial" in limited
        else "No licence is claimed here; whoever publishes the weights names one that the list above allows."
    )
    return "\n\n".join([*text, verdict, *_attributions(sources)])


def _attributions(sources: Sequence[DataSource]) -> Iterator[str]:
    owed: Counter[str] = Counter()
    for source in sources:
        owed |= Counter(source.attributions)
    if not owed:
        return
    if len(owed) > MAX_ATTRIBUTIONS:
        yield f"The recordings are by {len(owed):,} authors or sources, listed in `provenance.json`."
        return
    yield "Recordings by:\n\n" + "\n".join(f"- {name} ({count:,})" for name, count in owed.most_common())


def _training(provenance: Provenance) -> str:
    if not provenance.stages:
        return ""
    rows = [_stage_row(stage) for stage in provenance.stages]
    header = ["stage", "task", "what was trained", "length", "batch", "learning rate", "minutes"]
    versions = ", ".join(f"{name} {version}" for name, version in provenance.packages.items() if version)
    return _table(header, rows) + (f"\n\nTrained with {versions}." if versions else "")


def _stage_row(stage: StageRecord) -> list[str]:
    settings = stage.settings
    optim = settings.get("optim", {})
    length = f"{optim['steps']:,} steps" if optim.get("steps") is not None else ""
    length = f"{optim['epochs']:g} epochs" if optim.get("epochs") is not None else length
    tokens = settings.get("encoder_tokens")
    length = f"{tokens:,} encoder tokens" if tokens is not None else length
    length += f" over {stage.rows:,} rows" if stage.rows else ""
    rate = optim.get("learning_rate", "")
    if isinstance(rate, dict):
        rate = ", ".join(f"{part} {value:g}" for part, value in rate.items())
    minutes = "" if stage.seconds is None else f"{stage.seconds / 60:.1f}"
    batch = str(optim.get("batch_size", ""))
    shown = f"{rate:g}" if isinstance(rate, float | int) else rate
    return [stage.id, stage.task, _trained(stage.task, settings), length, batch, shown, minutes]


def _trained(task: str, settings: dict[str, Any]) -> str:
    tune = settings.get("tune")
    if tune is None:
        head = "head on the frozen encoder" if settings.get("probe") else "encoder and head"
        return {"pretrain": "encoder", "finetune": head, "language_model": "language model"}.get(task, "")
    parts = [part.replace("_", " ") for part in ("projector", "audio_tower") if tune.get(part) == "full"]
    parts += [f"audio tower ({tune['audio_tower']})"] if tune.get("audio_tower") == "norms" else []
    if tune.get("language_model") == "lora":
        parts.append(f"language model (LoRA, rank {tune['lora_rank']}, alpha {tune['lora_alpha']})")
    elif tune.get("language_model") == "full":
        parts.append("language model")
    quantized = settings.get("quantize")
    return ", ".join(parts) + (f"; language model in {quantized}" if quantized else "")


def _scores(results: dict[str, Any]) -> str:
    found = [f"{part.title}.\n\n{_table(part.header, part.rows)}" for part in tables(results)]
    if not found:
        return ""
    sentence = headline(results)
    missing = [f"Not measured: {what} ({reason})." for what, reason in skipped(results).items()]
    intro = "As the run measured them; every score beside what a model scores that does not listen."
    return "\n\n".join([intro, *found, *([sentence] if sentence else []), *missing])


def _limits(model: Any, provenance: Provenance, found: dict[str, list[str]]) -> str:
    lines = []
    if not tables(provenance.results):
        lines.append("No scores were recorded: nothing is known of how well it works.")
    if isinstance(model, AlmosaicForConditionalGeneration):
        lines += [
            "It can name sounds that are not there; whether it listens at all, the deaf controls show.",
            "It answers in the manner of its training texts; other wordings and languages were not tried.",
        ]
    sources = [source for source, _ in provenance.data().values()]
    if sources and all("no recordings" in source.note for source in sources):
        lines.append("It has heard generated sounds only, no recordings.")
    limited = _limited(found)
    lines += [f"Its training data bring terms along: {kind} ({', '.join(n)})." for kind, n in limited.items()]
    open_questions = sorted(
        {s.name for s in sources if NOT_STATED in s.licenses or (not s.licenses and s.place)}
    )
    if open_questions:
        lines.append(f"Licences are unknown in part or in whole for {', '.join(open_questions)}.")
    lines.append("Sound is heard at 16 kHz in mono; what lies above 8 kHz is lost.")
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
