from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from fake_records import write_records

from bloodcell_lib import drawn_folder, paths, shelf
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.records import load_records


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results, runs, downloads and cache of this test's own; no images."""
    for name in ("RESULTS", "RUNS", "RAW", "CACHE"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.delenv("BLOODCELL_DATA", raising=False)
    return tmp_path


def test_published_records_are_those_of_cpu_and_beside_them_those_of_full(places):
    write_records(places / "results" / "cpu", ["main", "no_se"], seeds=(0,))
    place = shelf.find("published", "demo")
    assert (place.runs, place.profile, place.own) == (places / "results" / "cpu", "cpu", False)
    assert place.study == place.runs and place.home == places / "runs" / "published"
    assert place.full() == []
    full = places / "results" / "full"
    write_records(full, profile="full")
    place = shelf.find("published", "demo")
    assert place.profile == "cpu", "also when the study of full is whole: the recipes and analyses are of cpu"
    assert {(r.profile, r.seed) for r in place.full()} == {("full", seed) for seed in (0, 1, 2)}
    shutil.rmtree(places / "results" / "cpu")
    place = shelf.find("published", "demo")
    assert (place.profile, place.full()) == ("full", []), "nothing else to tell of"
    assert {record.profile for record in place.grid()} == {"full"}


def test_own_records_are_the_profiles_and_may_be_yet_to_come(places):
    demo, cpu = shelf.find("own", "demo"), shelf.find("own", "cpu")
    assert demo.own and (demo.runs, demo.study) == (places / "runs" / "demo", places / "runs" / "demo" / "study")
    assert demo.profile == "demo/study" and demo.home == demo.runs
    assert (cpu.runs, cpu.study, cpu.profile, cpu.home) == (places / "runs" / "cpu",) * 2 + ("cpu", cpu.runs)
    with pytest.raises(BloodcellError, match=r"No records in .*demo: run the notebook 02_training first"):
        demo.main()
    with pytest.raises(BloodcellError, match=r"No records in .*study: run the notebook 03_ablations first"):
        demo.grid()


def test_a_folder_is_taken_as_it_is_or_from_the_repositorys_root(places):
    folder = places / "ein Ordner mit Ümläuten"
    write_records(folder, ["main"], seeds=(0, 1), profile="full")
    for given in (str(folder), os.path.relpath(folder, paths.ROOT)):
        place = shelf.find(given, "demo")
        assert (place.profile, place.own, place.home) == ("full", False, places / "runs" / "given")
        assert [record.seed for record in place.of("main")] == [0, 1]


def test_what_is_not_there_is_told_in_one_sentence(places):
    with pytest.raises(BloodcellError, match=r"No study is published yet in .*results: set results to 'own'"):
        shelf.find("published", "demo")
    with pytest.raises(BloodcellError, match=r"No records in .*nowhere: set results to 'published', to 'own', or to"):
        shelf.find(str(places / "nowhere"), "demo")
    with pytest.raises(BloodcellError, match="Unknown profile 'gpu'"):
        shelf.find("own", "gpu")
    write_records(places / "results" / "cpu", ["no_se", "aug_none"], seeds=(0,))
    with pytest.raises(BloodcellError, match=r"No record of main in .*: choose one that is there, no_se, aug_none"):
        shelf.find("published", "demo").of("main")


def test_records_of_two_profiles_are_not_mixed(places):
    write_records(places / "mixed", ["main"], seeds=(0,), profile="cpu")
    write_records(places / "mixed", ["no_se"], seeds=(0,), profile="full")
    with pytest.raises(BloodcellError, match="holds records of cpu and full: give those of one profile"):
        shelf.find(str(places / "mixed"), "demo")


def test_images_are_given_only_where_they_are_the_records(places):
    write_records(places / "results" / "cpu", ["main"], seeds=(0,))
    (record,) = shelf.find("published", "demo").main()
    assert shelf.images_of(record) is None
    assert not (places / "runs").exists() and not (places / "cache").exists(), "nothing is drawn to no purpose"
    drawn = drawn_folder.write(places / "drawn", per_class=2, test=0)
    assert shelf.images_of(record, str(drawn)) is None
    cells = shelf.views.load_images("cpu", drawn, progress=False)
    path = record.folder / "record.json"
    info = json.loads(path.read_text())
    info["data"]["fingerprint"] = cells.fingerprint
    path.write_text(json.dumps(info))
    found = shelf.images_of(load_records(places / "results" / "cpu")[0], str(drawn))
    assert found is not None and (len(found), found.images.shape[-1]) == (16, info["config"]["pixels"])
    with pytest.raises(BloodcellError, match=r"No folder"):
        shelf.images_of(record, str(places / "nowhere"))


def test_a_demo_is_shown_its_own_cells_whatever_others_are_at_hand(places, monkeypatch):
    write_records(places / "results" / "demo", ["main"], seeds=(0,), profile="demo")
    own = shelf.views.drawn_cells()
    cells = shelf.views.load_images("demo", own, progress=False)
    path = next((places / "results" / "demo").rglob("record.json"))
    info = json.loads(path.read_text())
    info["data"] |= {"source": cells.source, "fingerprint": cells.fingerprint}
    path.write_text(json.dumps(info))
    others = drawn_folder.write(places / "others", per_class=2, test=0)
    (others / paths.DRAWN).unlink()  # as if they were photographs
    monkeypatch.setenv("BLOODCELL_DATA", str(others))
    found = shelf.images_of(load_records(places / "results" / "demo")[0])
    assert found is not None and found.fingerprint == cells.fingerprint


def test_what_was_made_on_drawn_cells_is_not_published(places):
    write_records(places / "runs" / "cpu", ["main", "no_se"], seeds=(0,))
    path = places / "runs" / "cpu" / "no_se" / "seed0" / "record.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"data": info["data"] | {"source": "synthetic cells"}}))
    with pytest.raises(BloodcellError, match=r"no_se.seed0 was made on drawn cells, which give no results"):
        shelf.publish("cpu")
    assert not (places / "results").exists()
