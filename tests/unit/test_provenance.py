"""The line of a model: the stages that its weights went through, in this run and in others."""

import json
import shutil

import pytest

from almosaic.errors import AlmosaicError
from almosaic.provenance import FILE, Provenance, StageRecord, provenance_of


def stage(run, name, inputs=(), kind="alm", model_type="almosaic", **settings):
    """A finished stage with a model folder in a run that may be read from anywhere."""
    folder = run / "stages" / name
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": model_type}))
    note = {"order": len(list(run.glob("stages/*"))), "kind": kind, "done": True, "seconds": 90.0}
    note |= {"settings": settings, "inputs": dict.fromkeys(inputs, "hash")}
    (folder / "stage.json").write_text(json.dumps(note))
    return folder / "model"


def test_only_the_stages_that_lead_to_a_model_are_told(tmp_path):
    run = tmp_path / "run"
    stage(run, "lm", kind="language_model")
    stage(run, "encoder", kind="pretrain")
    stage(run, "untrained", kind="pretrain")
    parts = {"audio_tower": "encoder", "language_model": "lm"}
    stage(run, "align", ["encoder", "lm"], **{"from": parts})
    model = stage(run, "instruct", ["align"], **{"from": "align"})
    (run / "recipe.yaml").write_text("name: told\n")
    (run / "environment.json").write_text(
        json.dumps({"sessions": [{"started": "2025-06-07T08:00", "files": {"x": "abc"}, "packages": {}}]})
    )
    found = provenance_of(model)
    assert [one.id for one in found.stages] == ["encoder", "lm", "align", "instruct"]
    assert found.recipe == "name: told\n" and found.hashes == {"x": "abc"} and found.trained == "2025-06-07"
    assert provenance_of(run / "stages" / "align" / "model").stages[-1].id == "align"
    assert found.language_model() is None and not found.unknown


def test_a_line_goes_on_in_another_run_and_in_an_exported_folder(tmp_path):
    encoders = tmp_path / "encoders"
    stage(encoders, "pretrain", kind="pretrain", model_type="audiomosaic")
    files = {"sessions": [{"files": {"birds.jsonl": "abc"}}]}
    (encoders / "environment.json").write_text(json.dumps(files))
    stage(encoders, "later", kind="alm")  # the last stage of the run, but no encoder
    exported, lost = tmp_path / "exported", tmp_path / "lost"
    exported.mkdir()
    (exported / "config.json").write_text("{}")
    record = Provenance(stages=(StageRecord(id="words", task="language_model"),), unknown=("older",))
    (exported / FILE).write_text(record.model_dump_json())
    parts = {"audio_tower": str(encoders), "language_model": str(exported)}
    model = stage(tmp_path / "run", "align", [*parts.values(), str(lost)], **{"from": parts})
    found = provenance_of(model)
    assert [one.id for one in found.stages] == ["pretrain", "words", "align"]
    assert found.unknown == ("older", str(lost)) and found.hashes == {"birds.jsonl": "abc"}
    assert provenance_of(exported) == record
    shutil.copytree(model, tmp_path / "copied")
    assert provenance_of(tmp_path / "copied") == Provenance()
    (exported / FILE).write_text('{"stages": 3}')
    with pytest.raises(AlmosaicError, match=r"provenance\.json is damaged \(.*remove it"):
        provenance_of(exported)


def test_the_language_model_of_the_hub_is_named(tmp_path):
    parts = {"audio_tower": "encoder", "language_model": {"name": "Qwen/Qwen3-0.6B"}}
    align = stage(tmp_path / "a", "align", **{"from": parts})
    assert provenance_of(align).language_model() == "Qwen/Qwen3-0.6B"
    own = stage(tmp_path / "b", "lm", kind="language_model", language_model={"name": "tiny"})
    assert provenance_of(own).language_model() is None


def test_a_source_is_listed_once_with_all_its_stages(tmp_path):
    data = {"data": [{"name": "scenes"}], "sounds": {"name": "synthetic"}}
    stage(tmp_path, "encoder", kind="pretrain", **data)
    model = stage(tmp_path, "align", ["encoder"], **data)
    ((source, stages),) = provenance_of(model).data().values()
    assert source.name == "almosaic synthetic sounds" and stages == ["encoder", "align"]
