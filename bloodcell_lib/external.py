"""Images of another site: read whatever their size, scored by this machine's networks, and set beside validation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bloodcell_lib import data, decode, microscope
from bloodcell_lib.analysis import Subject, load_analyses, load_network, logits, of_experiment, record_analysis
from bloodcell_lib.cells import CELL_TYPES, CLASS_MAP, NAMES, TITLES
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.evaluate import change, confusion, over_seeds, top_confusions
from bloodcell_lib.microscope import SIDE
from bloodcell_lib.predict import Eye
from bloodcell_lib.records import Record

LEAVE_OUT = "-"


def parse_map(settings: Sequence[str]) -> dict[str, str]:
    """`["BAND=neutrophil", "SMUDGE=-"]` -> folders and their classes; "-" leaves a folder out.

    Raises BloodcellError for what is no such setting, or a class that there is not.
    """
    mapping = {}
    for setting in settings:
        old, equals, new = setting.rpartition("=")
        if not (old and equals):
            raise BloodcellError(f"--map {setting} is not understood: write FOLDER=CLASS, or FOLDER=- to leave it out.")
        if new not in (*NAMES, LEAVE_OUT):
            raise BloodcellError(f"--map {setting} names no class: choose one of {', '.join(NAMES)}, or - for none.")
        mapping[old] = new
    return mapping


def find(folder: Path, mapping: dict[str, str] | None = None) -> list[data.ImageFile]:
    """The image files of `<folder>/<class>/`, for those of the eight classes that it has, by class and name.

    Raises BloodcellError if there is no folder or no image, for a folder that is no class and that `mapping` does not
    name, and for a name in `mapping` that is no folder.
    """
    folder, mapping = Path(folder), mapping or {}
    if not folder.is_dir():
        raise BloodcellError(f"No folder {folder}: give one that holds a folder of images for each class.")
    inside = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    if lacking := sorted(set(mapping) - set(inside)):
        raise BloodcellError(f"No folder {folder / lacking[0]}, which --map names: name one that is there.")
    files = []
    for name, path in inside.items():
        known = mapping.get(name, name)
        if known == LEAVE_OUT:
            continue
        if known not in CLASS_MAP:
            near = difflib.get_close_matches(name.lower(), NAMES, n=1)
            raise BloodcellError(
                f"{path} is not one of the eight classes ({', '.join(NAMES)}): say which it is with "
                f"--map {name}={near[0] if near else 'CLASS'}, or leave it out with --map {name}={LEAVE_OUT}."
            )
        found = [data.ImageFile(file, CLASS_MAP[known]) for file in decode.images_in(path)]
        if not found:
            raise BloodcellError(f"No images in {path}: put some there, or leave it out with --map {name}={LEAVE_OUT}.")
        files += found
    if not files:
        raise BloodcellError(f"No class folder in {folder}: images belong in folders such as {folder / NAMES[0]}.")
    return sorted(files, key=lambda file: (file.label, file.path))


def load(
    folder: Path,
    pixels: int,
    share: float,
    mapping: dict[str, str] | None = None,
    skip_bad: bool = False,
    eye: Eye | None = None,
) -> CellImages:
    """The images at `pixels` x `pixels`: of each the central square that is `share` of its shorter side, resized.

    eye: reads of each how it was taken, which is undone before. Nothing is cached. Names are `<folder>/<file>`. Raises
    BloodcellError as `find` does, for a share outside (0, 1], for unreadable files unless `skip_bad` leaves them out,
    and for images that the networks were trained on.
    """
    if not 0 < share <= 1:
        raise BloodcellError(f"--crop {share:g} is no share of an image: give more than 0 and at most 1.")
    found = find(folder, mapping)
    files, digests, unread = data.digested(found)
    trained = {digest for _, digest in data.manifest()["train"].values()}
    if seen := sum(digest in trained for digest in digests):
        raise BloodcellError(
            f"{seen} of {len(files)} images in {folder} are the course's, which networks here were trained on: "
            "give another site's."
        )

    def one(path: Path) -> np.ndarray | OSError:
        try:
            image = decode.read(path)
            return eye.undone([image], pixels, share * SIDE)[0] if eye else microscope.view(image, share, pixels)
        except OSError as error:
            return error

    decoded = list(decode.in_threads(one, [file.path for file in files]))
    broken = [[str(file.path), str(image)] for file, image in zip(files, decoded) if isinstance(image, OSError)]
    if bad := unread + broken:
        data.report_bad(bad, len(found), Path(folder), skip_bad)
    kept = [i for i, image in enumerate(decoded) if not isinstance(image, OSError)]
    return CellImages(
        torch.from_numpy(np.stack([decoded[i] for i in kept])).permute(0, 3, 1, 2),
        torch.tensor([files[i].label for i in kept], dtype=torch.int64),
        tuple(f"{files[i].path.parent.name}/{files[i].path.name}" for i in kept),
        tuple(digests[i] for i in kept),
        Path(folder).resolve().name,
    )


def evaluate(
    records: Sequence[Record],
    folder: Path,
    mapping: dict[str, str] | None = None,
    share: float | None = None,
    device: str | None = None,
    skip_bad: bool = False,
    normalise: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Scores a folder with the networks of one experiment's runs; gives the result and the file that keeps it.

    share: of the shorter side, by default what training kept of the course's. normalise: whether what the published
    reader reads of each photograph is undone, which the result and the file's name then say. The file is the analysis
    `external_<folder>` beside the runs, with `_<experiment>` for another one than main; a newer one of the same images
    takes its place, and one of others has their fingerprint in its name.
    Raises BloodcellError as `load` and `load_network` do.
    """
    config, first = records[0].info["config"], records[0]
    if share is None:
        share = min(config["crop"] or SIDE, SIDE) / SIDE
    eye = Eye() if normalise else None
    cells = load(folder, config["pixels"], share, mapping, skip_bad, eye)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    runs = first.folder.parents[2 + first.profile.count("/")]
    subject = Subject(first.profile, cells, first.experiment, device, runs)
    name = re.sub(r"[^\w.+-]+", "_", f"external_{cells.source}") + "_normalised" * normalise
    earlier = of_experiment(load_analyses(subject.runs / first.profile), first.experiment).get(name)
    if earlier and earlier["data"]["fingerprint"] != cells.fingerprint:  # folders of two sites may be called the same
        name += f"_{cells.fingerprint[:8]}"
    result: dict[str, Any] = {}

    def analyse(_: Subject) -> dict[str, Any]:
        result.update(score(subject, records), crop=share, mapping=mapping or {}, normalised=normalise)
        return result

    return result, record_analysis(name, subject, analyse)


def score(subject: Subject, records: Sequence[Record]) -> dict[str, Any]:
    """How the networks of `records` name the subject's images, which are another site's.

    images; seeds; accuracy (of eight classes) and among (where only the folder's classes may be named), as
    `evaluate.over_seeds`; validation, the same networks' on their own validation images of these classes, and fall,
    from there to here, in points with an interval (None for runs that held no images out); classes: the same by class,
    which are recalls; confusion int (8, 8), all seeds together.
    """
    labels = subject.cells.labels.numpy()
    present = np.unique(labels)
    given = torch.stack([logits(load_network(r).to(subject.device).eval(), subject.cells.images) for r in records])
    said = given.argmax(2).numpy()  # (seeds, n)
    among = present[given[:, :, present].argmax(2).numpy()]
    runs = [r.validation() for r in records if r.info["data"]["validation"]]
    own = runs[0].labels if runs else np.empty(0, np.int64)
    hits = np.stack([run.predicted == run.labels for run in runs]) if runs else None

    def beside(classes: np.ndarray) -> dict[str, Any]:
        here, there = np.isin(labels, classes), np.isin(own, classes)
        found = over_seeds((said == labels)[:, here])
        before = over_seeds(hits[:, there]) if hits is not None and there.any() else None
        return {
            "images": int(here.sum()),
            "accuracy": found,
            "validation": before,
            "fall": before and change(before, found),
        }

    return {
        "seeds": len(records),
        **beside(present),
        "among": over_seeds(among == labels),
        "classes": {NAMES[k]: beside(np.array([k])) for k in present},
        "confusion": sum(confusion(labels, predicted) for predicted in said),
    }


def summary(result: dict[str, Any]) -> str:
    """The result in words and a table, for the screen."""

    def row(found: dict[str, Any]) -> dict[str, str]:
        fall, before = found["fall"], found["validation"]
        return {
            "images": str(found["images"]),
            "accuracy": _percent(found["accuracy"]),
            "validation": _percent(before) if before else "none",
            "change, points": f"{fall['points']:+.1f} ({fall['low']:+.1f} to {fall['high']:+.1f})" if fall else "none",
        }

    rows = {TITLES[CLASS_MAP[name]]: row(found) for name, found in result["classes"].items()} | {"All": row(result)}
    absent = [cell.title.lower() for cell in CELL_TYPES if cell.name not in result["classes"]]
    lines = [
        f"{result['images']} images, {result['seeds']} network(s), the central {result['crop']:.0%} of each image"
        + ", normalised" * result.get("normalised", False),
        pd.DataFrame.from_dict(rows, orient="index").to_string(),
    ]
    if absent:
        lines.append(f"not there: {', '.join(absent)}; without those answers, accuracy {_percent(result['among'])}")
    mistakes = top_confusions(result["confusion"])
    return "\n".join([*lines, *([mistakes.to_string(index=False)] if len(mistakes) else [])])


def _percent(found: dict[str, Any]) -> str:
    return f"{found['accuracy']:.1%} ({found['low']:.1%} to {found['high']:.1%})"
