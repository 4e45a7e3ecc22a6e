from __future__ import annotations

import io
import itertools

import matplotlib as mpl
import numpy as np
import pytest
import torch
from fake_records import write_records
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from PIL import Image

from bloodcell_lib import compare, diagram, evaluate, figures, gallery, models, paths
from bloodcell_lib.cells import CELL_TYPES, TITLES
from bloodcell_lib.data import CellImages
from bloodcell_lib.errors import BloodcellError
from bloodcell_lib.models import ModelConfig
from bloodcell_lib.plans import EXPERIMENTS, TRIED
from bloodcell_lib.records import load_records

RECORDED = ("training_curves", "ablations", "beyond", "parts", "model_comparison", "confusion_matrix", "per_class_f1")
EVERY = ("class_distribution", "sample_sheet", "architecture", *RECORDED)
NETWORKS = [
    ModelConfig(),
    ModelConfig(squeeze_excite=False),
    ModelConfig("as_described"),
    ModelConfig("efficientnet_lite", stochastic_depth=0.0),
]


def records_of(folder, *arguments, course=True, **settings):
    write_records(folder, *arguments, **settings)
    records = load_records(folder)
    for record in records:
        record.info["data"]["course"] = course
    return records


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return records_of(tmp_path_factory.mktemp("study"), list(EXPERIMENTS), epochs=25)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """What a demo leaves: one seed, one epoch, few images, part of the study, no course images."""
    names = ["main", "no_se", "simple_cnn", "efficientnet_lite", "aug_none"]
    folder = tmp_path_factory.mktemp("small")
    return records_of(folder, names, (0,), epochs=1, images=64, profile="demo/study", course=False)


@pytest.fixture(scope="module")
def cells():
    counts = {"BA": 40, "EO": 40, "ERB": 40, "MY": 15, "MMY": 14, "PMY": 9, "IG": 2, "LY": 40, "MO": 40}
    counts |= {"SNE": 20, "BNE": 19, "NEUTROPHIL": 1, "PLATELET": 40}
    names = [f"{prefix}_{i}.jpg" for prefix, n in counts.items() for i in range(n)]
    labels = [
        cell.id for prefix, n in counts.items() for cell in CELL_TYPES if prefix in cell.prefixes for _ in range(n)
    ]
    images = torch.randint(
        0, 256, (len(names), 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return CellImages(images, torch.tensor(labels), tuple(names), ("",) * len(names), "noise")


# Inches of those that stand beside another figure or a table in the report.
NARROW = {"training_curves": 2.15, "ablations": 3.25, "confusion_matrix": 3.3}
TABLES = {}


def table_of(records):
    """Of `compare.study_table`, once for each list of records."""
    if id(records) not in TABLES:
        TABLES[id(records)] = records, compare.study_table(records, resamples=500)  # the list too, which keeps its id
    return TABLES[id(records)][1]


def drawn(name, records, cells, config=NETWORKS[0], pixels=224):
    if name in ("ablations", "beyond", "parts", "model_comparison"):
        return getattr(figures, name)(table_of(records))
    if name == "architecture":
        return figures.architecture(config, pixels)
    if name == "training_curves":
        return figures.training_curves(records, narrow=True)
    return getattr(figures, name)(cells if name in ("class_distribution", "sample_sheet") else records)


def texts(figure):
    """Every visible text with its box in pixels."""
    renderer = figure.canvas.get_renderer()
    found = {id(t): t for t in figure.findobj(mpl.text.Text) if t.get_visible() and t.get_text().strip()}
    hidden = {id(t) for ax in figure.axes if not ax.axison for t in ax.xaxis.findobj() + ax.yaxis.findobj()}
    # A tick beyond the limits keeps its text, and matplotlib does not draw it.
    for axis in [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        ticks = axis.get_major_ticks() + axis.get_minor_ticks()
        hidden |= {id(tick.label1) for tick in ticks if not low - 1e-9 <= tick.get_loc() <= high + 1e-9}
    return [(text, text.get_window_extent(renderer)) for key, text in found.items() if key not in hidden]


def check_layout(figure):
    """No text is cut off, and none lies over another."""
    with figures.style():
        figure.set_dpi(200)
        mpl.backends.backend_agg.FigureCanvasAgg(figure).draw()
        found = texts(figure)
    assert len(found) > 5
    for text, box in found:
        assert box.x0 >= -0.5, text
        assert box.y0 >= -0.5, text
        assert box.x1 <= figure.bbox.x1 + 0.5, text
        assert box.y1 <= figure.bbox.y1 + 0.5, text
    level = [(text, box) for text, box in found if text.get_rotation() in (0, 90)]
    for (a, box), (b, other) in itertools.combinations(level, 2):
        wide = min(box.x1, other.x1) - max(box.x0, other.x0)
        high = min(box.y1, other.y1) - max(box.y0, other.y0)
        # A box reaches above and below its letters: two lines that stand close share a few empty pixels.
        assert wide <= 0 or high <= 6, f"'{a.get_text()}' lies over '{b.get_text()}'"


@pytest.mark.parametrize("name", EVERY)
def test_no_text_is_cut_or_covered(name, study, cells):
    check_layout(drawn(name, study, cells))


@pytest.mark.parametrize("name", [name for name in RECORDED if name not in ("beyond", "parts")])
def test_the_same_for_part_of_a_study(name, small, cells):
    check_layout(drawn(name, small, cells))


@pytest.mark.parametrize("config", NETWORKS)
@pytest.mark.parametrize("pixels", [64, 224])
def test_the_same_for_every_network(config, pixels):
    check_layout(figures.architecture(config, pixels))


def test_training_curves_have_their_own_page_too(study, small):
    for records in (study, small):
        check_layout(figures.training_curves(records))


def test_draw_all_writes_every_figure_twice(study, tmp_path, cells):
    written = figures.draw_all(study, study, {}, cells, tmp_path, stamp="synthetic demo")
    assert set(written) == set(EVERY)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{n}.{s}" for n in EVERY for s in ("pdf", "png"))
    for pdf, png in written.values():
        with Image.open(png) as image:
            assert image.width == 200 * NARROW.get(png.stem, 5.5)
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert np.asarray(image.convert("L")).std() > 5
        raw = pdf.read_bytes()
        assert b"/Type3" not in raw
        assert b"/CIDFontType2" in raw
        assert b"CreationDate" not in raw
        assert b"atplotlib" not in raw  # nor its version
        assert f"MediaBox [ 0 0 {72 * NARROW.get(pdf.stem, 5.5):g} ".encode() in raw
    assert plt.get_fignums() == []


def test_the_same_records_give_the_same_bytes(study, tmp_path):
    for folder in ("a", "b"):
        figures.save(figures.per_class_f1(study), "f1", tmp_path / folder)
    for suffix in ("pdf", "png"):
        assert (tmp_path / f"a/f1.{suffix}").read_bytes() == (tmp_path / f"b/f1.{suffix}").read_bytes()


@pytest.mark.parametrize("name", EVERY)
def test_the_stamp_is_readable(name, study, cells, tmp_path):
    figure = drawn(name, study, cells)
    before = len(figure.texts)
    figures.save(figure, "stamped", tmp_path, stamp="synthetic demo")
    assert [text.get_text() for text in figure.texts[before:]] == ["synthetic demo"]
    check_layout(figure)


def test_a_full_disk_is_no_missing_figure(study, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BloodcellError, match="Cannot write"):
        figures.draw_all(study, study[:3], {}, None, tmp_path / "file" / "figures")


def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch, cells):
    monkeypatch.setattr(paths, "MANIFEST", tmp_path / "absent.csv")
    records = records_of(tmp_path / "records", ["final"], (0,), images=64)
    with pytest.warns(UserWarning, match="was left out") as said:
        written = figures.draw_all(records, [], {}, None, tmp_path / "figures")
    assert set(written) == {"sample_sheet", "architecture", "training_curves"}
    assert len(said) == 4
    with pytest.warns(UserWarning, match="was left out"):
        assert set(figures.draw_all([], [], {}, cells, tmp_path)) == {
            "class_distribution",
            "sample_sheet",
            "architecture",
        }


def test_figures_without_main(tmp_path, cells):
    records = records_of(tmp_path, ["no_se", "resnet18_full"], (0, 1), images=64)
    with pytest.warns(UserWarning, match="ablations was left out"):
        written = figures.draw_all(records, records, {}, cells, tmp_path / "figures")
    assert set(written) == set(EVERY) - {"ablations", "beyond", "parts"}


def test_style_leaves_the_users_settings_alone(study):
    before = dict(mpl.rcParams)
    figure = figures.training_curves(study)
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 20, "axes.grid": False, "font.family": "monospace"}):
        other = figures.training_curves(study)
    assert [t.get_fontsize() for t in other.findobj(mpl.text.Text)] == [
        t.get_fontsize() for t in figure.findobj(mpl.text.Text)
    ]


def test_a_notebook_shows_a_figure_without_pyplot(study):
    with Image.open(io.BytesIO(figures.training_curves(study)._repr_png_())) as image:
        assert image.size == (825, 318)
    assert plt.get_fignums() == []


def test_class_distribution_counts(cells):
    (ax,) = figures.class_distribution(cells).axes
    for cell in CELL_TYPES:
        bars = [bar for bar in ax.patches if bar.get_y() + bar.get_height() / 2 == pytest.approx(cell.id)]
        assert sum(bar.get_width() for bar in bars) == 40
        assert to_hex(bars[0].get_facecolor()).upper() == cell.colour
    words = " ".join(text.get_text().replace("\n", " ") for text in ax.texts)
    for part in ("myelocyte 15", "metamyelocyte 14", "promyelocyte 9", "immature granulocyte 2", "band neutrophil 19"):
        assert part in words


def test_class_counts_of_the_manifest(tmp_path, monkeypatch):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        "part,name,class,sha256\ntrain,BA_1.jpg,basophil,00\ntrain,MY_2.jpg,ig,01\ntest,img_0.jpg,,02\n"
    )
    monkeypatch.setattr(paths, "MANIFEST", manifest)
    counted = gallery.manifest_cells()
    assert counted.labels.tolist() == [0, 3]
    (ax,) = figures.class_distribution(counted).axes
    assert sum(bar.get_width() for bar in ax.patches) == 2


def test_sample_sheet_shows_images_of_the_right_class(cells):
    figure = figures.sample_sheet(cells, per_class=3, seed=1)
    for cell, ax in zip(CELL_TYPES, figure.axes):
        column = np.asarray(ax.images[0].get_array())
        members = [image.permute(1, 2, 0).numpy() for image in cells.images[cells.labels == cell.id]]
        for k in range(3):
            assert any((column[24 * k : 24 * k + 24] == member).all() for member in members)
        assert ax.texts[0].get_text().replace("\n", " ") == cell.title
    few = cells.subset(range(5))  # one class, fewer than asked for
    assert len(figures.sample_sheet(few).axes) == 8


def test_published_sample_sheet_is_synthetic():
    cells = gallery.synthetic_cells(per_class=1, pixels=48)
    assert cells.images.shape == (8, 3, 48, 48)
    assert cells.labels.tolist() == list(range(8))
    assert cells.source == "synthetic cells"
    assert (cells.images == gallery.synthetic_cells(per_class=1, pixels=48).images).all()


@pytest.mark.parametrize("config", NETWORKS)
def test_architecture_adds_up_to_the_model(config):
    state = torch.random.get_rng_state()
    parts = diagram.network_parts(config, 96)
    assert (torch.random.get_rng_state() == state).all()
    with torch.device("meta"):
        model = models.build(config)
    assert sum(part.parameters for part in parts) == models.parameters(model)
    assert sum(part.macs for part in parts) == models.macs(model, 96)
    assert [part.name for part in parts] == [
        *("Input", "Stem"),
        *(f"Stage {k + 1}" for k in range(len(model.net.stages))),
        "Head",
    ]
    stages = models.LITE if config.name == "efficientnet_lite" else models.DEEP
    stages = models.AS_DESCRIBED if config.name == "as_described" else stages
    for part, stage in zip(parts[2:], stages):
        assert part.blocks == stage.blocks
        assert part.shape[0] == stage.channels
        assert part.gated == (stage.squeeze_excite and config.squeeze_excite)
        assert (part.expand, part.kernel) == (str(stage.expand), f"3 × 3, {stage.stride}")
    assert parts[-2].shape[1:] == model.net.features(torch.zeros(2, 3, 96, 96, device="meta")).shape[2:]
    words = [text.get_text() for text in figures.architecture(config, 96).axes[0].texts]
    assert any(f"{models.parameters(model):,} parameters" in word for word in words)
    assert ("squeeze, excite" in words) == any(part.gated for part in parts)


def test_architecture_of_another_network():
    with pytest.raises(BloodcellError, match="no MBConv stages"):
        figures.architecture(ModelConfig("resnet18"), 96)


def test_training_curves_show_the_mean_over_seeds(study):
    mains = [record for record in study if record.experiment == "main"]
    axes = figures.training_curves(study).axes
    for ax, what, scale in ((axes[0], "loss", 1), (axes[1], "accuracy", 100)):
        for line, part in zip(ax.lines, ("train", "validation")):
            rows = np.array([[row[f"{part}_{what}"] for row in record.info["history"]] for record in mains])
            assert line.get_ydata() == pytest.approx(scale * rows.mean(0))
            assert list(line.get_xdata()) == list(range(1, 26))
    assert len(axes[0].collections) == 2


def test_ablations_show_the_table(study, small):
    table = table_of(study)
    (ax,) = figures.ablations(table).axes
    shown = {float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1}
    wanted = table[table["group"].isin(["attention", "regularisation", "schedule", "augmentation"])]
    assert shown == {*wanted["difference"], table.loc["as_described", "difference"]}
    claimed = [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "D" and len(line.get_xdata())]
    assert sorted(claimed) == [-4.38, -3.6, -3.29, -2.5]
    # The reference's numbers say nothing about other images.
    (ax,) = figures.ablations(table_of(small)).axes
    assert not [line for line in ax.lines if line.get_marker() == "D"]


def test_what_lies_beyond_is_set_against_what_it_changes(study, small):
    table = table_of(study)
    tried = table["group"].isin(TRIED)
    for draw, rows in (
        (figures.beyond, table[table["group"].isin(compare.BEYOND) & ~tried]),
        (figures.parts, table[tried]),
    ):
        (ax,) = draw(table).axes
        dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
        assert sorted(float(dot.get_xdata()[0]) for dot in dots) == sorted(rows["difference"].dropna())
        assert len(dots) >= 4
        with pytest.raises(BloodcellError, match="Nothing beyond the reference's study"):
            draw(table_of(small))
    assert (
        "(lever: to flips alone; confirmed: to best recipe; stage: to travelled recipe; ablation: to patient recipe)"
        in figures.beyond(table).axes[0].get_xlabel().replace("\n", " ")
    )
    assert figures.parts(table).axes[0].get_xlabel() == "difference to the best recipe, short, points of accuracy"
    without = figures.beyond(table[~table["group"].isin(["lever", "confirmed", "stage", "ablation"])]).axes[0]
    assert without.get_xlabel() == "difference to the main model, points of accuracy"


def test_model_comparison_shows_both_budgets(study):
    table = table_of(study)
    (ax,) = figures.model_comparison(table).axes
    points = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    hollow = [line for line in points if to_hex(line.get_markerfacecolor()) == "#ffffff"]
    assert sorted(line.get_ydata()[0] for line in hollow) == pytest.approx(
        sorted(100 * table.loc[["simple_cnn", "resnet18", "efficientnet_lite"], "mean"])
    )
    assert len(points) == 8
    assert len([line for line in ax.lines if line.get_linestyle() == ":" and len(line.get_xdata()) == 2]) == 3
    assert [title.get_text().replace("\n", " ") for title in ax.texts] == [
        *("DeepEfficientNet", "SimpleCNN", "ResNet-18", "EfficientNetLite", "Blocks as described")
    ]


def test_confusion_matrix_prints_counts_and_shares(study):
    pooled = evaluate.pool([record for record in study if record.experiment == "main"])
    matrix = evaluate.confusion(pooled.labels, pooled.predicted)
    (ax,) = figures.confusion_matrix(study).axes
    counts = np.zeros((8, 8), dtype=int)
    for text in ax.texts:
        column, row = int(text.get_position()[0]), int(text.get_position()[1])
        if text.get_text().endswith("%"):
            assert text.get_text() == f"{100 * matrix[row, column] / matrix[row].sum():.1f} %"
        else:
            counts[row, column] = int(text.get_text())
    assert (counts == matrix).all()
    assert [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()] == list(TITLES)


def test_per_class_f1_shows_the_scores(study):
    pooled = evaluate.pool([record for record in study if record.experiment == "main"])
    table = evaluate.per_class(pooled.labels, pooled.predicted)
    (ax,) = figures.per_class_f1(study).axes
    for marker, column in (("o", "f1"), (">", "precision"), ("<", "recall")):
        shown = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == marker and len(line.get_xdata())]
        assert shown == pytest.approx(table[column].tolist())
