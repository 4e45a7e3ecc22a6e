"""Where the images can be had: a row of `SOURCES` for each file.

The addresses could not be tried where this was written; PBC's is the public address of the one file of that data set at
Mendeley Data, as published scripts of several groups have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bloodcell_lib import paths
from bloodcell_lib.cells import NAMES

PBC = (
    "Acevedo A., Merino A., Alférez S., Molina Á., Boldú L., Rodellar J., A dataset of microscopic peripheral blood "
    "cell images for development of automatic recognition systems, Data in Brief 30 (2020) 105474, "
    "doi:10.17632/snkd93bnjr.1"
)
MENDELEY = "https://data.mendeley.com"
MEDMNIST = (
    "Yang J. et al., MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image classification, "
    f"Scientific Data 10 (2023) 41, doi:10.5281/zenodo.10519652; from {PBC}"
)


@dataclass(frozen=True)
class Source:
    """One file to download, kept at `file` in the folder of all sources; `page` is where a person can download it.

    urls: all of the same file; the next one is tried when one fails for good.
    checksum: "algorithm:hex", or None to pin the sha256 of the first sound download in `<file>.sha256`.
    kind: "zip" is unpacked to a folder called `name`, "npz" stays as it is.
    size: in pixels, where a source comes in several.
    holds: what a zip has side by side somewhere inside; this alone is unpacked, up to `most_bytes`.
    manifest: table of the sha256 of each image that must come out, checked where it exists.
    """

    name: str
    urls: tuple[str, ...]
    file: str
    page: str
    checksum: str | None = None
    licence: str = "CC BY 4.0"
    citation: str = PBC
    kind: str = "zip"
    size: int | None = None
    holds: tuple[str, ...] = ()
    manifest: Path | None = None
    most_bytes: int = 4 * 2**30


def _bloodmnist(size: int, md5: str) -> Source:
    file = "bloodmnist.npz" if size == 28 else f"bloodmnist_{size}.npz"
    page = "https://zenodo.org/records/10519652"
    name, checksum = "bloodmnist", f"md5:{md5}"
    return Source(
        name, (f"{page}/files/{file}",), f"{name}/{file}", page, checksum, citation=MEDMNIST, kind="npz", size=size
    )


SOURCES = (
    Source(
        "course",
        ("https://codeload.github.com/ALFIE-SADMAN/perfect-cell-classification/zip/HEAD",),  # the default branch
        "course.zip",
        "https://github.com/ALFIE-SADMAN/perfect-cell-classification",
        holds=("class_map.json", "train", "test"),
        manifest=paths.MANIFEST,
    ),
    Source(
        "pbc",
        (f"{MENDELEY}/public-files/datasets/snkd93bnjr/files/2fc38728-2ae7-4a62-a857-032af82334c3/file_downloaded",),
        "pbc.zip",
        f"{MENDELEY}/datasets/snkd93bnjr/1",
        holds=NAMES,
    ),
    _bloodmnist(28, "7053d0359d879ad8a5505303e11de1dc"),
    _bloodmnist(64, "2b94928a2ae4916078ca51e05b6b800b"),
    _bloodmnist(128, "adace1e0ed228fccda1f39692059dd4c"),
    _bloodmnist(224, "b718ff6835fcbdb22ba9eacccd7b2601"),
)
