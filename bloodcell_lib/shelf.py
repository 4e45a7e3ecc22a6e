"""Where records stand: the published ones, this machine's, or those in a folder that a reader names; and publishing."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bloodcell_lib import paths, plans, views
from bloodcell_lib.analysis import load_analyses
from bloodcell_lib.data import SYNTHETIC, CellImages
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.records import ANALYSES, Record, load_records

PUBLISHED, OWN = "published", "own"


@dataclass(frozen=True)
class Shelf:
    """The folders that hold `<experiment>/seed<k>/`, and the profile that these records were made under.

    runs: of the main experiment. study: of the grid, the same folder except in the demo, whose grid has a profile of
    its own. home: where figures drawn from them go. own: whether they are this machine's, so that more can be made.
    """

    runs: Path
    study: Path
    profile: str
    home: Path
    own: bool

    def main(self) -> list[Record]:
        """The records in `runs`. Raises BloodcellError if there is none."""
        found = load_records(self.runs)
        if not found:
            raise BloodcellError(f"No records in {self.runs}: run the notebook 02_training first.")
        return found

    def grid(self) -> list[Record]:
        """The records in `study`. Raises BloodcellError if there is none."""
        found = load_records(self.study)
        if not found:
            raise BloodcellError(f"No records in {self.study}: run the notebook 03_ablations first.")
        return found

    def full(self) -> list[Record]:
        """What is recorded under `full` beside a study under `cpu`; none beside any other."""
        return full_beside(self.study, self.profile)

    def of(self, experiment: str) -> list[Record]:
        """Those in `runs` of one experiment, by seed. Raises BloodcellError if there is none."""
        found = self.main()
        chosen = [record for record in found if record.experiment == experiment]
        if not chosen:
            there = ", ".join(dict.fromkeys(record.experiment for record in found))
            raise BloodcellError(f"No record of {experiment} in {self.runs}: choose one that is there, {there}.")
        return chosen


def published_profile(results: Path = paths.RESULTS) -> str:
    """`cpu`, whose recipes and analyses go beyond the study, and beside which what `full` has is told; `full` where
    `results` holds nothing else."""
    alone = not (Path(results) / "cpu").exists() and load_records(Path(results) / "full")
    return "full" if alone else "cpu"


def counted(records: Sequence[Record], budget: plans.Profile) -> tuple[int, int]:
    """How many of the runs that a budget's study plans are among `records`, and how many it plans."""
    planned = set(itertools.product(plans.STUDY, budget.seeds))
    return len(planned & {(record.experiment, record.seed) for record in records}), len(planned)


def full_beside(folder: Path, profile: str) -> list[Record]:
    """What is recorded under `full` beside the records of `cpu` in `folder`; of another profile, nothing."""
    return load_records(folder.parent / "full") if profile == "cpu" else []


def home_of(results: str, profile: str) -> Path:
    """Where what is drawn goes: `runs/<profile>` for this machine's records, so that others leave it alone."""
    names = {OWN: profile, PUBLISHED: PUBLISHED}
    return paths.RUNS / names.get(results, "given")


def find(results: str, profile: str) -> Shelf:
    """The shelf that `results` means: "published", "own" (this machine's under `profile`), or else a folder.

    A folder is given as it is, or from the repository's root. Raises BloodcellError if nothing is published, or if
    the folder holds no records; this machine's may be yet to come.
    """
    home = home_of(results, plans.profile(profile).name)
    if results == OWN:
        study = plans.profile(profile).study or profile
        return Shelf(home, paths.RUNS / study, study, home, own=True)
    if results == PUBLISHED:
        folder = paths.RESULTS / published_profile(paths.RESULTS)
        otherwise = (
            f"No study is published yet in {paths.RESULTS}: set results to 'own' to run one here, "
            "or record one with `bloodcell study` and then `bloodcell publish`."
        )
    else:
        folder = paths.ROOT / os.path.expanduser(results)
        otherwise = (
            f"No records in {folder}: set results to 'published', to 'own', or to a folder that holds "
            "<experiment>/seed<k>/record.json."
        )
    found = load_records(folder)
    if not found:
        raise BloodcellError(otherwise)
    made = {record.profile for record in found}
    if len(made) > 1:
        raise BloodcellError(f"{folder} holds records of {' and '.join(sorted(made))}: give those of one profile.")
    return Shelf(folder, folder, made.pop(), home, own=False)


def images_of(record: Record, given: str = "", skip_bad: bool = False) -> CellImages | None:
    """The labelled images that a run saw, at its size; None where they are not on this machine.

    given: their folder, else the drawn ones for a run on such, else as `views.image_folder` finds it.
    """
    here = Path(given) if given else paths.data_folder()
    if not given and record.info["data"]["source"] == SYNTHETIC and not (here and (here / paths.DRAWN).exists()):
        folder = views.drawn_cells()
    elif here:
        folder = views.image_folder(here, record.profile)
    else:
        return None
    view = record.info["config"]["pixels"], record.info["config"]["crop"]
    cells = views.load_images(record.profile, folder, skip_bad, progress=False, view=view)
    return cells if cells.fingerprint == record.info["data"]["fingerprint"] else None


def publish(profile: str) -> list[Path]:
    """Copies this machine's records of a profile, without weights, to `report/results`; those there stay as they are.

    Analyses go along, and a newer one takes the place of an older. Returns what is new. Raises BloodcellError if there
    is nothing to publish, or something damaged.
    """
    records = load_records(paths.RUNS / profile)
    if not records:
        raise BloodcellError(f"No records in {paths.RUNS / profile}: run the study there first.")
    new = []
    for record in records:  # damage is told before anything is copied
        if record.info["data"]["source"] == SYNTHETIC and not plans.profile(profile).disposable:
            raise BloodcellError(f"{record.folder} was made on drawn cells, which give no results: move it away first.")
        if record.info["data"]["validation"]:
            record.validation()
    load_analyses(paths.RUNS / profile)
    for record in records:
        target = paths.RESULTS / profile / record.folder.relative_to(paths.RUNS / profile)
        if target.exists():
            continue
        with paths.write_folder_whole(target) as folder:
            for name in ("record.json", "validation.npz"):
                if (record.folder / name).exists():
                    shutil.copyfile(record.folder / name, folder / name)
        new.append(target)
    for path in sorted((paths.RUNS / profile / ANALYSES).glob("*.json")):
        target = paths.RESULTS / profile / ANALYSES / path.name
        if not target.exists() or target.read_bytes() != path.read_bytes():
            with paths.write_whole(target) as temporary:
                shutil.copyfile(path, temporary)
            new.append(target)
    return new
