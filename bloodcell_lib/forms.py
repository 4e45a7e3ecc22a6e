"""What each type of cell looks like when it is drawn: sizes, nucleus, granules, and what they take up of each stain."""

from __future__ import annotations

from dataclasses import dataclass, replace

Span = tuple[float, float]  # drawn uniformly between the two
Stains = tuple[float, float, float]  # amounts of violet, blue and eosin; 1 is what a dense structure takes up


@dataclass(frozen=True)
class Dots:
    """Granules, dust or vacuoles: `spacing` and `size` in pixels, the `share` of places taken, what they take up."""

    spacing: float
    size: float
    share: Span
    stains: Stains
    over: float = 0.0  # how much of them lies over the nucleus, 0 to 1


@dataclass(frozen=True)
class Form:
    """How one finer type looks. Nucleus: `lobes` discs on an arc, joined by necks; lengths are shares of the radius.

    No lobes, no nucleus; a short thick arc is round, a longer one a kidney, a long thin one a band.
    """

    radius: Span  # of the cell, pixels
    waves: tuple[float, float, float]  # of its outline: length, least and greatest height, pixels
    cytoplasm: tuple[Stains, Stains]  # one extreme and the other
    dots: tuple[Dots, ...] = ()
    lobes: tuple[int, ...] = (0,)  # one is chosen
    thick: Span = (0.0, 0.0)  # radius of a lobe
    bend: Span = (0.5, 0.5)  # radius of the arc
    turn: Span = (0.0, 0.0)  # degrees on the arc from one lobe to the next
    neck: Span = (1.0, 1.0)  # radius of a neck, as a share of `thick`
    chromatin: Span = (0.75, 0.95)  # violet of the nucleus
    grain: Span = (1.3, 1.7)  # of its texture, pixels
    clear: Span = (0.4, 0.6)  # how light the gaps in it are
    rim: float = 0.15  # darker line along the cell's edge


# fmt: off
HOLES = Dots(11.0, 2.4, (0.0, 0.25), (0.03, 0.06, 0.0))
DUST = Dots(4.0, 0.9, (0.1, 0.5), (0.28, 0.0, 0.14))
FINE = Dots(4.5, 1.1, (0.2, 0.5), (0.65, 0.0, 0.15), over=0.3)
BRIGHT = Dots(4.5, 1.5, (0.6, 0.95), (0.10, 0.0, 0.95))
COARSE = Dots(6.5, 2.1, (0.55, 0.95), (1.0, 0.05, 0.0), over=1.0)

BASOPHIL = Form(
    (54, 68), (30, 1, 4), ((0.06, 0.0, 0.06), (0.18, 0.08, 0.04)), (COARSE,), (2, 3), thick=(0.4, 0.5),
    bend=(0.3, 0.4), turn=(70, 110), chromatin=(0.6, 0.9), clear=(0.2, 0.5), rim=0.05)
EOSINOPHIL = Form(
    (57, 70), (34, 1, 3), ((0.04, 0.0, 0.62), (0.12, 0.05, 0.72)), (BRIGHT,), (2, 2, 2, 3), thick=(0.3, 0.38),
    bend=(0.42, 0.5), turn=(100, 145), neck=(0.15, 0.5), chromatin=(0.8, 0.98), grain=(1.5, 2.0), rim=0.3)
BASOPHILIC_ERYTHROBLAST = Form(
    (44, 56), (40, 1, 2), ((0.06, 0.6, 0.0), (0.15, 0.95, 0.0)), (), (1,), thick=(0.58, 0.68),
    chromatin=(0.98, 1.08), grain=(1.5, 2.0), clear=(0.45, 0.7), rim=0.2)
LATE_ERYTHROBLAST = Form(
    (36, 46), (40, 1, 2), ((0.04, 0.22, 0.14), (0.10, 0.50, 0.0)), (), (1,), thick=(0.48, 0.6),
    chromatin=(1.0, 1.12), clear=(0.05, 0.35))
MYELOCYTE = Form(
    (60, 74), (34, 1, 4), ((0.10, 0.10, 0.08), (0.14, 0.30, 0.04)), (FINE,), (2,), thick=(0.48, 0.58),
    bend=(0.15, 0.25), turn=(60, 120), chromatin=(0.86, 0.98))
PROMYELOCYTE = replace(
    MYELOCYTE, radius=(66, 80), dots=(Dots(4.5, 1.1, (0.5, 0.85), (1.0, 0.0, 0.2), over=0.8),), thick=(0.52, 0.62))
METAMYELOCYTE = replace(
    MYELOCYTE, radius=(58, 70), dots=(replace(FINE, share=(0.1, 0.35), over=0.0),), lobes=(3,), thick=(0.34, 0.4),
    bend=(0.38, 0.46), turn=(65, 85))
LYMPHOCYTE = Form(
    (40, 54), (24, 1, 3), ((0.06, 0.35, 0.0), (0.15, 0.85, 0.0)), (), (2,), thick=(0.6, 0.74),
    bend=(0.08, 0.14), turn=(60, 140), chromatin=(0.92, 1.05), clear=(0.25, 0.5), rim=0.2)
MONOCYTE = Form(
    (68, 86), (26, 1, 6), ((0.0, 0.30, 0.05), (0.10, 0.50, 0.02)), (replace(DUST, share=(0.05, 0.3)), HOLES), (3, 4),
    thick=(0.32, 0.4), bend=(0.3, 0.4), turn=(65, 85), neck=(0.8, 1.0), chromatin=(0.8, 0.94))
BULKY_MONOCYTE = replace(MONOCYTE, lobes=(3,), thick=(0.42, 0.5), bend=(0.2, 0.3), turn=(70, 110))
FOAMY_MONOCYTE = replace(MONOCYTE, waves=(22, 3, 8), dots=(MONOCYTE.dots[0], replace(HOLES, share=(0.3, 0.7))))
SEGMENTED = Form(
    (56, 70), (34, 1, 3), ((0.03, 0.0, 0.09), (0.09, 0.05, 0.13)), (DUST,), (3, 3, 4, 4, 5), thick=(0.22, 0.28),
    bend=(0.4, 0.5), turn=(58, 82), neck=(0.12, 0.3), chromatin=(0.92, 1.04), grain=(1.5, 2.0), rim=0.08)
BAND = replace(SEGMENTED, lobes=(6,), thick=(0.17, 0.23), bend=(0.44, 0.54), turn=(30, 48), neck=(0.75, 1.0))
PLATELET = Form(
    (18, 29), (11, 1, 3), ((0.08, 0.08, 0.02), (0.25, 0.22, 0.02)),
    (Dots(4.0, 1.2, (0.5, 0.9), (0.8, 0.0, 0.1)),), rim=0.05)
# fmt: on

FORMS: dict[str, tuple[Form, ...]] = {  # by the finer types of cells.py
    "basophil": (BASOPHIL,),
    "eosinophil": (EOSINOPHIL,),
    "erythroblast": (BASOPHILIC_ERYTHROBLAST, LATE_ERYTHROBLAST),
    "promyelocyte": (PROMYELOCYTE,),
    "myelocyte": (MYELOCYTE,),
    "metamyelocyte": (METAMYELOCYTE,),
    "immature granulocyte": (PROMYELOCYTE, MYELOCYTE, METAMYELOCYTE),
    "lymphocyte": (LYMPHOCYTE,),
    "monocyte": (MONOCYTE, BULKY_MONOCYTE, FOAMY_MONOCYTE),
    "segmented neutrophil": (SEGMENTED,),
    "band neutrophil": (BAND,),
    "neutrophil": (SEGMENTED, BAND),
    "platelet": (PLATELET,),
}
