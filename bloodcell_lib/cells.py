"""The eight cell types: id, folder name, title, file prefixes with the finer type that each names, colour."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CellType:
    """One class. `prefixes` maps the start of a PBC file name to the finer type that it names."""

    id: int
    name: str
    title: str
    prefixes: dict[str, str]
    colour: str
    about: str


# Colours: Paul Tol's "muted" scheme, told apart by colour-blind readers; one colour a class everywhere.
CELL_TYPES = (
    CellType(
        0,
        "basophil",
        "Basophil",
        {"BA": "basophil"},
        "#332288",
        "Coarse, dark violet granules lie over the nucleus and hide it; the rarest white cell, busy in allergy.",
    ),
    CellType(
        1,
        "eosinophil",
        "Eosinophil",
        {"EO": "eosinophil"},
        "#CC6677",
        "A nucleus of two lobes among even, orange-red granules; rises with parasites and allergy.",
    ),
    CellType(
        2,
        "erythroblast",
        "Erythroblast",
        {"ERB": "erythroblast"},
        "#882255",
        "A young red cell that still has its nucleus, small, round and dense, in a grey-blue rim. Rare in health.",
    ),
    CellType(
        3,
        "ig",
        "Immature granulocyte",
        {"MY": "myelocyte", "MMY": "metamyelocyte", "PMY": "promyelocyte", "IG": "immature granulocyte"},
        "#DDCC77",
        "Granulocytes on the way to maturity, with a round or kidney-shaped nucleus and fine granules (a left shift).",
    ),
    CellType(
        4,
        "lymphocyte",
        "Lymphocyte",
        {"LY": "lymphocyte"},
        "#117733",
        "A round, dense nucleus nearly fills the cell and leaves a thin blue rim; the cell of adaptive immunity.",
    ),
    CellType(
        5,
        "monocyte",
        "Monocyte",
        {"MO": "monocyte"},
        "#88CCEE",
        "The largest cell in blood, with a folded nucleus and grey cytoplasm with vacuoles; a macrophage to be.",
    ),
    CellType(
        6,
        "neutrophil",
        "Neutrophil",
        {"SNE": "segmented neutrophil", "BNE": "band neutrophil", "NEUTROPHIL": "neutrophil"},
        "#44AA99",
        "Three to five lobes joined by threads, or one curved band in the young form; the most frequent white cell.",
    ),
    CellType(
        7,
        "platelet",
        "Platelet",
        {"PLATELET": "platelet"},
        "#AA4499",
        "A small, granular fragment without a nucleus; starts the clot.",
    ),
)

NAMES = tuple(cell.name for cell in CELL_TYPES)
TITLES = tuple(cell.title for cell in CELL_TYPES)
COLOURS = tuple(cell.colour for cell in CELL_TYPES)
CLASS_MAP = {cell.name: cell.id for cell in CELL_TYPES}


def _finer(cell: CellType) -> list[str]:
    """The finer types of a class, less the one that only repeats the class where there are others."""
    kinds = list(cell.prefixes.values())
    return [kind for kind in kinds if kind != cell.title.lower()] or kinds


# Every finer type as (id of its class, its name), in the order of the classes.
FINER_TYPES = tuple((cell.id, kind) for cell in CELL_TYPES for kind in _finer(cell))


def prefix(file_name: str) -> str:
    """The part of a file name before the first underscore: `SNE_1234.jpg` -> `SNE`."""
    return file_name.split("_")[0]


def finer_type(file_name: str, label: int) -> str:
    """The finer type that a file's name gives a cell of class `label`; "" where it gives none, or the class's alone."""
    kind = CELL_TYPES[label].prefixes.get(prefix(file_name), "")
    return kind if (label, kind) in FINER_TYPES else ""
