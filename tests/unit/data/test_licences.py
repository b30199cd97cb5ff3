"""Licences of training clips: counted over the rows that train, restrictions named, gone files admitted."""

import json

import pytest
from pydantic import TypeAdapter

from almosaic.data.labelled import LabelledData
from almosaic.data.licences import NOT_STATED, data_sources, restrictions
from almosaic.data.sources import FolderData, ManifestData, ShardsData
from almosaic.scenes.bank import BankSettings
from almosaic.training.alm_data import ChatFileSettings

ROWS = [
    ("a", "train", "1", "CC0-1.0", "ann"),
    ("b", "train", "2", "CC-BY-NC-3.0", "ben"),
    ("c", "train", "2", "CC-BY-NC-3.0", "ben"),
    ("d", "test", "5", "CC-BY-SA-4.0", "dan"),
    ("e", "dev", "4", None, None),
]


@pytest.fixture
def manifest(tmp_path):
    """Five clips under four licences, in a folder whose name is that of the data set."""
    keys = ("id", "split", "fold", "license", "attribution")
    rows = [dict(zip(keys, row, strict=True)) | {"audio": f"{row[0]}.wav"} for row in ROWS]
    path = tmp_path / "forest" / "manifest.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plain(settings, **changes):
    """Settings as a stage's note holds them."""
    return settings.model_validate({**changes}).model_dump(mode="json", by_alias=True)


def of(entry, sounds=None):
    (source,) = data_sources({"data": entry, "sounds": sounds})
    return source


def test_a_manifest_counts_the_rows_that_are_chosen(manifest):
    source = of([plain(ManifestData, manifest=manifest, splits=["train"])])
    assert (source.name, source.rows) == ("forest", 3)
    assert source.licenses == {"CC-BY-NC-3.0": 2, "CC0-1.0": 1}
    assert source.attributions == {"ann": 1, "ben": 2}
    everything = of([plain(ManifestData, manifest=manifest)])
    assert everything.rows == 5 and everything.licenses[NOT_STATED] == 1
    assert of([plain(ManifestData, manifest=manifest, folds=["5", "4"])]).rows == 2


def test_labelled_clips_count_without_the_fold_that_is_scored(manifest):
    assert of(plain(LabelledData, manifest=manifest, fold=2)).licenses["CC0-1.0"] == 1
    assert of(plain(LabelledData, manifest=manifest, fold=2)).rows == 3
    assert of(plain(LabelledData, manifest=manifest, train=["train"], test=["test"])).rows == 3


def test_banks_count_their_training_split(manifest):
    recorded = {"name": "recorded", "manifest": str(manifest), "classes": "c.csv"}
    by_fold = recorded | {"splits": {"train": {"fold": [1, 5]}}}
    joined = {"name": "joined", "banks": {"one": recorded, "two": by_fold}}

    def bank(fields):
        return TypeAdapter(BankSettings).validate_python(fields).model_dump(mode="json")

    scenes = [{"name": "scenes"}]
    assert of(scenes, bank(recorded)).rows == 3
    assert of(scenes, bank(by_fold)).licenses == {"CC0-1.0": 1, "CC-BY-SA-4.0": 1}
    assert [source.rows for source in data_sources({"data": scenes, "sounds": bank(joined)})] == [3, 2]
    assert "no recordings" in of(scenes, bank({"name": "synthetic"})).note
    assert "descriptions" in of({"name": "scene_texts"}, bank(recorded)).kind


def test_chat_files_count_their_conversations(tmp_path):
    rows = [{"messages": [], "license": "CC-BY-4.0", "attribution": "eve"}, {"messages": []}]
    path = tmp_path / "openaqa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = of([plain(ChatFileSettings, path=path)])
    assert (source.name, source.kind, source.rows) == ("openaqa", "conversations", 2)
    assert source.licenses == {"CC-BY-4.0": 1, NOT_STATED: 1} and source.attributions == {"eve": 1}
    several = data_sources({"data": [plain(ChatFileSettings, path=[path, path])]})
    assert several == [source, source]


def test_what_cannot_be_counted_says_why(tmp_path, manifest):
    manifest.unlink()
    gone = of([plain(ManifestData, manifest=manifest)])
    assert gone.rows is None and not gone.licenses and "not at hand" in gone.note
    assert "not at hand" in of([plain(ChatFileSettings, path=tmp_path / "no.jsonl")]).note
    assert "states no licences" in of([plain(FolderData, folder=tmp_path)]).note
    shards = of([plain(ShardsData, shards="clips/train-*.tar")])
    assert shards.name == "clips" and "not read" in shards.note


@pytest.mark.parametrize(
    ("licence", "kinds"),
    [
        ("CC-BY-NC-3.0", ["non-commercial"]),
        ("cc_by_nc_sa", ["non-commercial", "share-alike"]),
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/", ["non-commercial", "no derivatives"]),
        ("Non-commercial research only", ["non-commercial"]),
        ("CC-Sampling-Plus-1.0", ["no advertising (Sampling Plus)"]),
        ("CC-BY-4.0", []),
        ("CC0-1.0", []),
        ("Apache-2.0", []),
    ],
)
def test_restrictions_of_a_licence(licence, kinds):
    assert restrictions([licence, "MIT"]) == {kind: [licence] for kind in kinds}
