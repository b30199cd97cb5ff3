"""Model cards: front matter that the hub reads, licences that are inherited, Python that runs."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import soundfile
import transformers
import yaml
from helpers_tiny import tiny_encoder, tiny_model, waveform
from packaging.version import Version

from almosaic.alm import TuneSettings, apply_tuning
from almosaic.cli import main
from almosaic.data.licences import DataSource
from almosaic.export import export
from almosaic.model_card import MAX_ATTRIBUTIONS, model_card
from almosaic.provenance import FILE, Provenance, StageRecord

if TYPE_CHECKING:
    from tests.conftest import SmokeRun

# Older versions of the library ask for it by name; almosaic does without.
PIPELINE_NEEDS_LIBROSA = Version(transformers.__version__) < Version("5.23") and not find_spec("librosa")
HUB_PARTS = {"from": {"audio_tower": "encoder", "language_model": {"name": "Qwen/Qwen3-0.6B"}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with adapters, of which only the configuration and the sizes matter."""
    model, _ = tiny_model(tmp_path_factory.mktemp("card"))
    apply_tuning(model, TuneSettings(language_model="lora", lora_rank=4))
    return model


def sections(card):
    """Front matter as plain data, and the text of each heading."""
    _, head, text = card.split("---\n", 2)
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return yaml.safe_load(head), dict(zip(parts[1::2], parts[2::2], strict=True)) | {"top": parts[0]}


def recorded(*licences, attributions=None, settings=None, **about):
    """A model of one stage, trained on a source with these licences."""
    source = DataSource(
        name="Forest sounds",
        kind="clips",
        place="/data/forest/manifest.jsonl",
        rows=sum(dict(licences).values()),
        licenses=dict(licences),
        attributions=attributions or {},
    )
    stage = StageRecord(id="align", task="alm", settings=settings or {}, data=(source,))
    return Provenance(stages=(stage,), **about)


def test_non_commercial_terms_of_the_data_are_named_and_keep_a_licence_away(model):
    provenance = recorded(("CC0-1.0", 7), ("CC-BY-NC-3.0", 2), settings=HUB_PARTS)
    head, text = sections(model_card(model, provenance))
    assert head["license"] == "other" and head["license_name"] == "inherits-non-commercial-terms"
    assert head["base_model"] == ["Qwen/Qwen3-0.6B"] and head["base_model_relation"] == "finetune"
    assert head["datasets"] == ["forest-sounds"] and head["pipeline_tag"] == "audio-text-to-text"
    assert "| Forest sounds | CC-BY-NC-3.0 | 2 |" in text["Licences"]
    assert "**non-commercial**: CC-BY-NC-3.0, in Forest sounds." in text["Licences"]
    assert "| language model Qwen/Qwen3-0.6B | not stated |" in text["Licences"]
    assert "bring terms along: non-commercial (CC-BY-NC-3.0)" in text["Limits"]


def test_free_data_leave_the_choice_of_a_licence_open(model):
    head, text = sections(model_card(model, recorded(("CC0-1.0", 7), ("CC-BY-4.0", 2))))
    assert "license" not in head and "base_model" not in head
    assert "No licence is claimed here" in text["Licences"] and "bring terms" not in text["Limits"]
    _, text = sections(model_card(model, recorded(("not stated", 3))))
    assert "Licences are unknown in part or in whole for Forest sounds." in text["Limits"]


def test_the_licence_of_a_language_model_is_read_from_its_own_card(model, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Words\nlicense: mit\n")
    (tmp_path / "config.json").write_text("{}")
    settings = {"from": {"audio_tower": "encoder", "language_model": {"name": str(tmp_path)}}}
    head, text = sections(model_card(model, recorded(("CC0-1.0", 7), settings=settings)))
    assert head["license"] == "other" and "base_model" not in head
    assert f"| language model {tmp_path} | cc-by-nc-4.0 |" in text["Licences"]


def test_authors_are_listed_until_they_are_too_many(model):
    few = recorded(("CC-BY-4.0", 3), attributions={"ann | bo": 2, "eve": 1})
    assert "- ann | bo (2)\n- eve (1)" in sections(model_card(model, few))[1]["Licences"]
    many = recorded(("CC-BY-4.0", 99), attributions={f"a{i}": 1 for i in range(MAX_ATTRIBUTIONS + 1)})
    assert f"by {MAX_ATTRIBUTIONS + 1} authors or sources, listed in `{FILE}`" in model_card(model, many)


def test_a_length_in_encoder_tokens_is_told(model):
    settings = {"optim": {"steps": None, "epochs": None, "batch_size": 16}, "encoder_tokens": 12_000_000}
    _, text = sections(model_card(model, recorded(("CC0-1.0", 7), settings=settings)))
    assert "| 12,000,000 encoder tokens | 16 |" in text["Training"]


def test_stages_and_parts_are_told_with_their_sizes_and_rates(model):
    settings = {
        "tune": {"projector": "full", "language_model": "lora", "lora_rank": 4, "lora_alpha": 8},
        "optim": {"steps": 1200, "batch_size": 16, "learning_rate": {"projector": 1e-3}},
        "quantize": "nf4",
    }
    provenance = recorded(
        ("CC0-1.0", 7), settings=settings, hashes={"/data/forest/manifest.jsonl": "ab" * 32}
    )
    _, text = sections(model_card(model, provenance))
    wanted = "| align | alm | projector, language model (LoRA, rank 4, alpha 8); language model in nf4 |"
    assert f"{wanted} 1,200 steps | 16 | projector 0.001 |" in text["Training"]
    assert "sha256 abababababab" in text["Training data"]
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert (
        f"| LoRA adapters | rank 4, alpha 32, in the language model, not merged | {adapters:,} |"
        in text["Parts"]
    )
    words = sum(p.numel() for p in model.language_model.parameters()) - adapters
    assert f"| language model | llama, width 32 | {words:,} |" in text["Parts"]
    assert "No scores were recorded" in text["Limits"] and "Scores" not in text


def test_a_model_of_which_nothing_is_recorded_says_so():
    head, text = sections(model_card(tiny_encoder(), Provenance()))
    assert head["pipeline_tag"] == "feature-extraction" and "license" not in head
    assert "Nothing is recorded" in text["top"] and set(text) == {"top", "Use", "Parts", "Limits"}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with a recording, where a reader of the card would stand."""
    soundfile.write(tmp_path / "clip.wav", waveform(1.5), 16_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("form", ["--merge", "--adapter"])
def test_the_card_of_a_run_is_whole_and_its_python_runs(
    form: str, smoke: "SmokeRun", desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(smoke.folder), "out", form]) == 0
    card = (desk / "out" / "README.md").read_text()
    head, text = sections(card)
    assert head["library_name"] == ("peft" if form == "--adapter" else "transformers")
    titles = ["Use", "Parts", "Training data", "Licences", "Training", "Scores", "Limits", "Recipe"]
    assert [title for title in text if title != "top"] == titles
    assert "stage `instruct`" in text["top"] and "generated sounds only" in text["Limits"]
    assert [line.split(" | ")[0] for line in text["Training"].split("\n") if line.startswith("| ")] == [
        f"| {name}" for name in ("stage", "---", "encoder", "lm", "align", "instruct")
    ]
    for control in ("silence", "shuffled", "question only", "majority"):
        assert control in text["Scores"]
    assert (
        yaml.safe_load(text["Recipe"].strip().removeprefix("```yaml").removesuffix("```"))["name"] == "smoke"
    )
    assert "path of this machine" not in card and str(smoke.folder) not in card.split("## Recipe")[0]
    blocks = re.findall(r"```python\n(.*?)```", text["Use"], re.S)
    assert len(blocks) == 2
    words = str(smoke.folder / "stages" / "lm" / "model")
    for block in blocks:
        if "pipeline(" in block and PIPELINE_NEEDS_LIBROSA:
            continue
        capsys.readouterr()
        code = block.replace("path/to/this/folder", "out").replace("path/to/the/language/model", words)
        exec(compile(code, "README.md", "exec"), {})
        assert capsys.readouterr().out, block


def test_another_export_keeps_what_is_known(smoke: "SmokeRun", tmp_path: Path) -> None:
    first = export(smoke.folder, tmp_path / "first", "full")
    moved = shutil.move(first, tmp_path / "moved")
    second = export(moved, tmp_path / "second")
    assert json.loads((second / FILE).read_text()) == json.loads((moved / FILE).read_text())
    old, new = (sections((folder / "README.md").read_text())[1] for folder in (moved, second))
    for title in ("Training data", "Training", "Scores", "Recipe"):
        assert old[title] == new[title]
