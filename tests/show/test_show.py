"""Pictures: what is drawn where, on any image and any number of objects; what is refused."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.evaluate.classes import count_by_class
from cellkit.evaluate.evaluation import score_models, summarise
from cellkit.scores.attribution import attribute
from cellkit.scores.iou import overlaps
from cellkit.scores.kaggle import kaggle
from cellkit.scores.matching import class_accuracy
from cellkit.scores.table import score_table
from cellkit.show import style
from cellkit.show.charts import curve_of, show_confusion, show_curves, show_gains, show_history, show_scores
from cellkit.show.conversion import show_conversion
from cellkit.show.counts import show_counts
from cellkit.show.explained import KERNELS, flow_colours, show_convolution, show_flows
from cellkit.show.overlays import outline_of, show_errors, show_image, show_overlay, verdicts
from cellkit.show.sheets import show_crops, show_sheet
from cellkit.show.style import (
    bare_axes,
    class_colour,
    class_dashes,
    class_name,
    class_stripes,
    figure_of,
    model_looks,
    new_figure,
    save_figure,
    to_png,
    to_svg,
)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def squares(*boxes, shape=(40, 60), class_ids=None) -> Instances:
    """Objects that are rectangles (top, left, bottom, right)."""
    labels = np.zeros(shape, np.int32)
    for k, (top, left, bottom, right) in enumerate(boxes, 1):
        labels[top:bottom, left:right] = k
    return Instances.from_labels(labels, class_ids)


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def painted(ax, k: int) -> np.ndarray:
    """The k-th picture that lies on the Axes, (H, W, ...) uint8."""
    return np.asarray(ax.images[k].get_array())


GREY, COLOUR = np.full((40, 60), 90, np.uint8), np.full((40, 60, 3), 90, np.uint8)


# ---- outlines ------------------------------------------------------------------------------------------------------
def test_outline_of_two_touching_squares():
    labels = np.zeros((6, 8), int)
    labels[1:5, 1:4], labels[1:5, 4:7] = 3, 9
    expected = np.zeros((6, 8), bool)
    expected[1:5, 1:7] = True
    expected[2:4, 2:3] = expected[2:4, 5:6] = False
    assert np.array_equal(outline_of(labels), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_outline_is_what_erosion_takes_from_each_object(seed, width_px):
    from scipy.ndimage import binary_erosion, generate_binary_structure

    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 4, (5, 6)), np.ones((5, 4), int))
    outline, cross = outline_of(labels), generate_binary_structure(2, 1)
    for value in (1, 2, 3):
        inside = binary_erosion(labels == value, cross, border_value=1)
        assert np.array_equal(outline & (labels == value), (labels == value) & ~inside)
    wide = outline_of(labels, width_px)
    assert not (wide & (labels == 0)).any() and (wide | ~outline).all()


def test_overlay_paints_each_class_in_its_colour_at_its_place():
    found = squares((5, 5, 20, 20), (5, 30, 20, 50), class_ids=[1, 2])
    ax = show_overlay(COLOUR, found, classes=("HEK", "N2a"))
    layer = painted(ax, 1)
    scale = layer.shape[0] // 40
    for row, column, name in ((12, 5, 1), (12, 30, 2)):
        wanted = np.round(255 * np.array(to_rgb(class_colour(name)))).astype(int)
        pixel = layer[row * scale + scale // 2, column * scale]
        assert pixel[:3].tolist() == wanted.tolist() and pixel[3] == 255
    assert layer[12 * scale, 12 * scale, 3] == 0  # inside: the image shows
    assert ax.images[1].get_extent() == [-0.5, 59.5, 39.5, -0.5]
    assert texts(ax) == ["HEK 1", "N2a 1"]


def test_truth_is_dashed_in_white_and_dark():
    truth = squares((5, 5, 35, 55))
    ax = show_overlay(GREY, Instances.empty((40, 60)), truth)
    layer = painted(ax, 1)
    shown = layer[layer[..., 3] > 0]
    light = (shown[:, :3] == 255).all(axis=1).mean()
    assert 0.3 < light < 0.7
    assert texts(ax) == ["found 0", "truth 1"]
    white = (layer == 255).all(axis=-1)
    beside = np.roll(white, 1, axis=0) & ~white
    assert (layer[beside][:, :3] == 0).all() and (layer[beside][:, 3] >= 200).all()  # so seen on any line below


def test_the_legend_says_which_side_is_which():
    found, truth = squares((5, 5, 20, 20), class_ids=[1]), squares((5, 5, 20, 20))
    of_class = show_overlay(GREY, found, truth, classes=("HEK",), names=("proposed", "used (corrected)"))
    assert texts(of_class) == ["proposed: HEK 1", "used (corrected) 1"]


def test_overlapping_masks_show_the_higher_score():
    a, b = (
        squares((5, 5, 25, 25), class_ids=[1]).with_scores(0.4),
        squares((5, 15, 25, 35), class_ids=[2]).with_scores(0.9),
    )
    layer = painted(show_overlay(GREY, Instances.concatenate([a, b]), fill=0.5), 1)
    scale = layer.shape[0] // 40
    assert layer[15 * scale, 20 * scale, :3].tolist() == [round(255 * v) for v in to_rgb(class_colour(2))]


@pytest.mark.parametrize("image", [GREY, COLOUR, np.zeros((1, 1), np.uint8), np.zeros((3, 2000, 3), np.uint8)])
@pytest.mark.parametrize("count", [0, 1])
def test_any_image_and_no_object(image, count):
    shape = image.shape[:2]
    labels = np.zeros(shape, np.int32)
    labels[0, 0] = count
    cells = Instances.from_labels(labels)
    for ax in (show_overlay(image, cells, cells), show_errors(image, cells, cells), show_image(image)):
        to_png(ax, dpi=40)
        plt.close("all")


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"\(H, W\) or \(H, W, 3\) uint8, this is \(40, 60\) uint16"):
        show_overlay(GREY.astype(np.uint16), squares())
    with pytest.raises(UserError, match="40 x 60 px, its objects are of 4 x 6 px"):
        show_errors(GREY, Instances.empty((4, 6)), squares())


# ---- errors --------------------------------------------------------------------------------------------------------
def test_error_map_counts_hits_misses_inventions_and_wrong_classes():
    truth = squares((0, 0, 10, 10), (0, 20, 10, 30), (20, 0, 30, 10), class_ids=[1, 2, 1])
    found = squares((0, 0, 10, 9), (0, 20, 10, 30), (30, 40, 38, 50), class_ids=[1, 1, 2])
    of_truth, of_found = verdicts(truth, found)
    assert of_truth.tolist() == ["hit", "hit", "missed"]
    assert of_found.tolist() == ["hit", "wrong class", "invented"]
    assert texts(show_errors(COLOUR, truth, found)) == ["hit 1", "missed 1", "invented 1", "wrong class 1"]
    assert texts(show_errors(COLOUR, truth, found.with_classes(0))) == ["hit 2", "missed 1", "invented 1"]


def test_verdicts_follow_the_threshold_strictly():
    truth, found = squares((0, 0, 10, 10)), squares((0, 0, 10, 5))  # IoU .5: not above .5
    assert [side.tolist() for side in verdicts(truth, found)] == [["missed"], ["invented"]]
    assert [side.tolist() for side in verdicts(truth, found, 0.45)] == [["hit"], ["hit"]]


# ---- conversion ----------------------------------------------------------------------------------------------------
def test_conversion_shows_the_file_and_the_picture(tmp_path):
    from cellkit.config.reading import load_config
    from cellkit.sources.drawn.files import write_fields
    from cellkit.sources.ingest import convert_images

    cfg = load_config(Path(__file__).parents[2] / "configs" / "demo.yaml").convert
    write_fields(
        tmp_path / "raw", lines=("HEK",), images_per_line=1, mixed_images=0, size_px=64, defect_images_per_line=0
    )
    converted = convert_images(cfg, tmp_path / "raw", tmp_path / "run")
    axes = show_conversion(tmp_path / "run", tmp_path / "raw", converted.images.records[0], cfg)
    assert [ax.get_title(loc="left").split("\n") for ax in axes[[0, 2]]] == [
        ["DAPI, plane 2 of 3", "goes to blue"],
        ["GFP, plane 2 of 3", "goes to green"],
    ]
    assert axes[-1].get_title(loc="left").endswith("8-bit RGB, z max of 3")
    low = next(row["low"] for row in converted.conversion if row["channel"] == "DAPI")
    assert axes[1].lines[0].get_xdata()[0] == pytest.approx(low)
    gone = show_conversion(tmp_path / "run", tmp_path / "elsewhere", converted.images.records[0])
    assert [ax.get_title(loc="left") for ax in gone[:2]] == ["GFP: in green", "DAPI: in blue"]


# ---- sheets --------------------------------------------------------------------------------------------------------
def test_sheet_shows_every_cell_type_and_its_classes(drawn):
    axes = show_sheet(drawn, n=4, columns=2, title="four")
    assert axes.shape == (2, 2)
    shown = [ax.get_title(loc="left") for ax in axes.flat]
    chosen = [int(title.split(":")[0]) for title in shown]
    assert sorted(k % 2 for k in chosen) == [0, 0, 1, 1]
    assert all(title == f"{k}: {len(drawn.instances[k])} cells" for k, title in zip(chosen, shown, strict=True))
    legend = axes[0, 0].get_figure().legends[0]
    assert [text.get_text().split(" ")[0] for text in legend.get_texts()] == ["HEK", "N2a"]


def test_sheet_of_a_folder_with_records(drawn):
    flagged = [replace(drawn.records[0], flags="debris;out_of_focus"), drawn.records[1]]
    axes = show_sheet(drawn.root, flagged)
    assert axes[0, 0].get_title(loc="left") == "0: debris, out of focus"
    assert len(axes[0, 0].images) == 1
    axes = show_sheet(drawn.root, drawn.records[:3], drawn.instances[:3])
    assert axes.shape == (1, 3) and len(axes[0, 2].images) == 2
    with pytest.raises(UserError, match="3 images, 2 sets of objects"):
        show_sheet(drawn.root, drawn.records[:3], drawn.instances[:2])
    with pytest.raises(UserError, match="without records"):
        show_sheet(drawn.root)


def test_sheet_of_nothing_and_of_unequal_groups(drawn):
    assert show_sheet(drawn.subset([])).shape == (1, 1)
    lopsided = drawn.subset([0, 2, 4, 1])  # three HEK, one N2a
    titles = {ax.get_title(loc="left").split(":")[0] for ax in show_sheet(lopsided, n=3).flat}
    assert titles == {"0", "4", "1"}


def test_crops_are_rows_of_single_cells(drawn):
    axes = show_crops(drawn, n=4)
    assert axes.shape == (2, 4)
    of = [sum(len(x) for x in drawn.instances[k::2]) for k in (0, 1)]
    assert [row[0].texts[0].get_text() for row in axes] == [f"HEK: 4 of {of[0]}", f"N2a: 4 of {of[1]}"]
    sides = {tuple(np.abs(np.diff([ax.get_xlim(), ax.get_ylim()])).ravel()) for ax in axes.flat if ax.images}
    assert len(sides) == 1  # one scale
    assert show_crops(replace(drawn.subset([0]), instances=[Instances.empty((96, 96))])).shape == (1, 8)


# ---- scores --------------------------------------------------------------------------------------------------------
@pytest.fixture
def scored(drawn):
    """Two models on the drawn images: one loses a cell of each image, one finds all, with half the classes wrong."""
    judged = drawn.subset([3, 4, 5])
    names = [record.image_id for record in judged.records]
    fewer = [cells[1:].with_classes(0) for cells in judged.instances]
    whole = [cells.with_classes(1) for cells in judged.instances]
    predictions = {
        "cellpose_tuned": dict(zip(names, fewer, strict=True)),
        "maskrcnn": dict(zip(names, whole, strict=True)),
    }
    parts = {split: judged.select(split) for split in ("val", "test")}
    return judged, predictions, score_models(predictions, parts)


def test_curves_give_the_map_iou_of_the_scores_module(scored):
    judged, predictions, table = scored
    ax = show_curves(table[table["split"] == "val"], title="validation")
    val = judged.select("val")
    found = [predictions["cellpose_tuned"][r.image_id] for r in val.records]
    wanted = kaggle([overlaps(t, f) for t, f in zip(val.instances, found, strict=True)], bootstrap=0)
    assert texts(ax) == ["Mask R-CNN  1.000", f"Cellpose, tuned  {wanted['score']:.3f}"]
    drawn_line = next(line for line in ax.lines if line.get_label().startswith("Cellpose"))
    assert drawn_line.get_ydata().tolist() == pytest.approx(list(wanted["by_threshold"].values()))
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in ax.lines}) == 2


def test_curves_of_several_splits_are_several_pictures(scored):
    table = scored[2]
    assert [ax.get_title(loc="left") for ax in show_curves(table)] == ["validation images", "test images"]
    with pytest.raises(UserError, match="one split"):
        show_curves(table, ax=plt.subplots()[1])


def test_an_image_without_anything_counts_one():
    empty = Instances.empty((4, 4))
    from cellkit.cells.records import ImageRecord

    table = score_table([empty], [empty], [ImageRecord("a", "a.png", 4, 4)])
    assert curve_of(table).tolist() == [1.0] * 10
    assert texts(show_curves({"mine": table})) == ["mine  1.000"]


def test_scores_are_points_with_intervals_by_split(scored):
    frame = summarise(scored[2], n=100)
    ax = show_scores(frame)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Cellpose, tuned", "Mask R-CNN"] * 2
    assert {text.get_text() for text in ax.texts} >= {"validation images", "test images", "1.000"}
    points = [line.get_xdata()[0] for line in ax.lines if line.get_marker() in "D^"]
    assert points == pytest.approx([*frame.sort_values(["split", "model"], ascending=[False, True])["score"]])
    nothing = frame.assign(score=np.nan)
    assert not show_scores(nothing).lines


def test_history_marks_what_was_kept(tmp_path):
    from cellkit.models.training_state import find_history

    path = tmp_path / "history.csv"
    path.write_text("step,loss,score,seconds\n0,nan,0.2,1\n50,1.0,0.7,20\n100,0.5,0.6,40\n")
    axes = show_history(path)
    assert axes[0].lines[0].get_xdata().tolist() == [50, 100]  # no loss before the first step
    assert axes[1].texts[0].get_text() == "kept: step 50, 0.700"
    assert axes[1].get_xlabel() == "training step"  # no card beside it
    (none,) = show_history(find_history(tmp_path / "nothing"))
    assert "no curve" in none.texts[0].get_text() and find_history(tmp_path) == path
    both = show_history({"cellpose_tuned": path, "maskrcnn": pd.read_csv(path)})
    assert texts(both[0]) == ["Cellpose, tuned", "Mask R-CNN"]
    path.write_text("step,loss\n0,1\n")
    with pytest.raises(UserError, match="lacks the column"):
        show_history(path)


def test_the_curve_says_why_the_tables_differ(tmp_path):
    from cellkit.models.weights import save_checkpoint

    path = tmp_path / "history.csv"
    path.write_text("step,loss,score,seconds,kept\n0,,0.9,1,1\n")
    at = {"diameter_of": "batch", "flow_threshold": 0.4, "cellprob_threshold": 0.0}
    tensors = {"a": __import__("torch").zeros(1)}
    for name, flow, metrics in (("base", 0.8, {}), ("tuned", 0.4, {"read_at": at})):
        settings = {**at, "flow_threshold": flow}
        save_checkpoint(tmp_path / f"cellpose_{name}.safetensors", tensors, "x", config=settings, metrics=metrics)
    said = " ".join(show_history(path)[1].get_xlabel().split())
    assert "read at diameter_of batch and flow_threshold 0.4 and cellprob_threshold 0;" in said
    assert "(base at batch and 0.8 and 0, tuned at batch and 0.4 and 0)" in said
    save_checkpoint(tmp_path / "cellpose_base.safetensors", tensors, "x", config=at, metrics={})
    assert show_history(path)[1].get_xlabel() == "training step"


def test_markers_at_the_ends_of_an_axis_are_whole_and_no_axis_goes_beyond_all(scored, tmp_path):
    judged, _, table = scored
    lines = show_curves(table[table["split"] == "val"]).lines
    path = tmp_path / "history.csv"
    path.write_text("step,loss,score,seconds,kept\n0,,1.0,1,0\n5,0.4,0.0,2,1\n")
    axes = show_history(path)
    assert not any(line.get_clip_on() for line in [*lines, *axes[0].lines, *axes[1].lines])
    assert axes[1].texts[0].xyann[1] > 0  # beside a low point the words stand above
    assert axes[1].get_ylim() == (0, 1)
    ruined = attribute(judged.instances, [x[:0] for x in judged.instances], judged.records)
    ax = show_gains(ruined)
    assert ax.get_xlim()[1] > 1 >= max(ax.get_xticks())  # room for words, but no score of more than 1
    perfect = show_gains(attribute(judged.instances, judged.instances, judged.records))
    assert perfect.get_xlim() == (0, 0.1)


def test_a_number_beside_a_wide_interval_does_not_lie_on_the_names():
    wide = pd.DataFrame([{"model": "maskrcnn", "score": 0.5, "low": 0.0, "high": 1.0}])
    ax = show_scores(wide)
    assert ax.texts[0].xy[0] == 0.5 and ax.texts[0].get_horizontalalignment() == "center"


def test_counts_are_shares_of_the_cells(scored):
    judged, predictions, _ = scored
    counts = count_by_class(predictions["maskrcnn"], judged, judged)
    ax = show_counts(counts)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["all 3 images", "3", "4", "5"]
    total = int(counts.loc[counts["image_id"] == "all", "truth"].sum())
    hek = int(counts.query("image_id == 'all' and class_name == 'HEK'")["truth"].iloc[0])
    widths = [bar.get_width() for bar in ax.patches[:3]]
    assert widths == pytest.approx([100 * hek / total, 100 * (total - hek) / total, 100.0])
    assert texts(ax) == ["HEK", "N2a", "truth (above)", "found (below)"]
    assert texts(show_counts(counts.drop(columns=["truth", "true_share"]))) == ["HEK", "N2a"]


def test_gains_and_confusion(scored):
    judged, predictions, _ = scored
    lost = attribute(
        judged.instances, [predictions["cellpose_tuned"][r.image_id] for r in judged.records], judged.records
    )
    ax = show_gains(lost)
    assert ax.get_yticklabels()[0].get_text() == "missed"
    assert ax.texts[0].get_text().endswith("3 cells in 3 images")
    found = [predictions["maskrcnn"][r.image_id] for r in judged.records]
    accuracy, n, confusion = class_accuracy(judged.instances, found, classes=judged.classes)
    ax = show_confusion(confusion, title=f"{accuracy:.2f} of {n}")
    cells = [len(x) for x in judged.instances]
    assert [text.get_text() for text in ax.texts] == [
        f"{cells[1]}\n100 %", "0\n0 %", f"{cells[0] + cells[2]}\n100 %", "0\n0 %",
    ]  # fmt: skip


# ---- networks ------------------------------------------------------------------------------------------------------
def test_flow_colours_turn_with_the_direction():
    right, left, none = flow_colours(np.zeros(3), np.array([1.0, -1.0, 0.0]))
    assert none.tolist() == [0, 0, 0]
    assert right.argmax() == 0 and left.argmin() == 0  # red to the right, its opposite to the left
    assert flow_colours(np.zeros((2, 2)), np.zeros((2, 2))).max() == 0


def test_flows_and_convolution():
    maps = np.zeros((3, 40, 60), np.float32)
    maps[1], maps[2] = 5.0, -3.0
    axes = show_flows(COLOUR, maps)
    assert len(axes) == 3
    assert np.allclose(axes[2].images[0].get_array(), 1 / (1 + np.exp(3)))  # a logit is shown as a probability
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        show_flows(COLOUR, maps[0])
    image = np.zeros((40, 60), np.uint8)
    image[:, 30:] = 100
    axes = show_convolution(image, {"left edges": KERNELS["left edges"]})
    answer = axes[1, 1].images[0].get_array()
    assert answer[20, 29] == answer[20, 30] == 100 and answer[20, 10] == 0
    to_png(show_convolution(np.zeros((1, 1), np.uint8)), dpi=40)


# ---- files ---------------------------------------------------------------------------------------------------------
def test_png_and_svg_are_the_same_each_time(tmp_path):
    draw = lambda: show_overlay(COLOUR, squares((5, 5, 20, 20)), title="a $b^{ & <c>")  # noqa: E731
    ax = draw()
    first, vector = to_png(ax, dpi=60), to_svg(ax, dpi=60)
    assert save_figure(draw(), tmp_path / "deep" / "a.png", dpi=60).read_bytes() == first
    assert to_svg(draw(), dpi=60) == vector and b"<text" not in vector
    names = [first[at + 4 : at + 8] for at in chunks(first)]
    assert b"tEXt" not in names and names[-1] == b"IEND"


def chunks(png: bytes):
    at = 8
    while at < len(png):
        size = struct.unpack(">I", png[at : at + 4])[0]
        assert zlib.crc32(png[at + 4 : at + 8 + size]) == struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0]
        yield at
        at += 12 + size


def test_the_callers_style_and_axes_are_left_alone():
    before = dict(matplotlib.rcParams)
    figure, ax = plt.subplots()
    assert show_errors(GREY, squares((0, 0, 5, 5)), squares(), ax=ax) is ax
    assert figure_of(np.array([ax])) is figure and plt.get_fignums() == [figure.number]
    assert dict(matplotlib.rcParams) == before
    show_overlay(GREY, squares(), ax=new_figure(2, 2).subplots())
    assert plt.get_fignums() == [figure.number]  # nothing registered with pyplot


def test_models_have_looks_of_their_own():
    names = ["maskrcnn", "threshold", "cellpose_tuned", "cellpose_base", "unet", "another"]
    looks = model_looks(names)
    assert list(looks) == ["threshold", "cellpose_base", "cellpose_tuned", "maskrcnn", "another", "unet"]
    assert len({tuple(look.values()) for look in looks.values()}) == 6
    many = model_looks([f"m{k}" for k in range(40)])
    assert len({tuple(look.values()) for look in many.values()}) == 40
    assert len({class_colour(k) for k in range(9)}) == 9
    looks = {(class_colour(k), class_dashes(k), str(class_stripes(k))) for k in range(41)}
    assert len(looks) == len({look[:2] for look in looks}) == len({look[::2] for look in looks}) == 41
    assert class_name(3, ("HEK", "N2a")) == "class 3"


def test_a_ninth_class_is_drawn_with_dashes_in_picture_and_legend():
    boxes = (2, 2, 18, 18), (20, 2, 38, 18), (2, 30, 18, 58)
    ax = show_overlay(COLOUR, squares(*boxes, class_ids=[1, 9, 17]), classes=[f"c{k}" for k in range(17)])
    looks = [
        (line.get_color(), line.get_linestyle(), line._unscaled_dash_pattern) for line in ax.get_legend().get_lines()
    ]
    assert len({str(look) for look in looks}) == 3 and len({colour for colour, *_ in looks}) == 1
    layer = painted(ax, 1)
    scale = len(layer) // 40
    shares = []
    for top, left, bottom, right in boxes:
        part = layer[top * scale : bottom * scale, left * scale : right * scale]
        whole = (part[..., 3] == 255).sum()
        shares.append(whole / (whole + (part[..., 3] == 170).sum()))
    assert shares[0] == 1
    assert shares[1:] == pytest.approx([2.5 / 3.5, 3.2 / 5.2], abs=0.08)


def test_signs_that_no_font_has_are_escaped_and_said_once(capsys, monkeypatch):
    monkeypatch.setattr(style, "OTHER_FONTS", ())
    monkeypatch.setattr(style, "_TOLD", set())
    ax = show_overlay(GREY, squares((2, 2, 9, 9), class_ids=[1]), classes=["\u7ec6-\u00e9\U0001f9eb"], title="\u7ec6")
    ax.set_yticks([0, 20], ["\u7ec6", "b"])
    assert to_png(ax, dpi=40).startswith(b"\x89PNG")  # a warning would be an error
    assert texts(ax) == ["\\u7ec6-\u00e9\\U0001f9eb 1"]
    assert ax.get_title(loc="left") + ax.get_yticklabels()[0].get_text() == "\\u7ec6" * 2
    told = capsys.readouterr().err
    assert told.count("\u7ec6") == told.count("\U0001f9eb") == 1


def test_a_font_that_has_the_signs_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(style, "OTHER_FONTS", ("No Such Font", "STIXGeneral"))
    lacking = "\U0001d538"  # STIX comes with matplotlib and has it
    house, other = (style._signs_of(family) for family in ("DejaVu Sans", "STIXGeneral"))
    sign = lacking if ord(lacking) in other - house else chr(min(other - house))
    ax = show_image(GREY, title=sign)
    assert ax.title.get_text() + ax._left_title.get_text() == sign
    assert "STIXGeneral" in ax._left_title.get_fontfamily()
    assert to_png(ax, dpi=40).startswith(b"\x89PNG")


def test_the_users_matplotlibrc_changes_no_saved_picture():
    def picture() -> bytes:
        ax = bare_axes(2, 1)
        return to_png(show_overlay(GREY, squares((2, 2, 9, 9)), ax=ax, title="a"), dpi=40)

    before = picture()
    theirs = {
        "savefig.bbox": "tight",
        "figure.autolayout": True,
        "text.usetex": True,
        "lines.linewidth": 9,
        "image.cmap": "jet",
    }
    with matplotlib.rc_context(theirs):
        assert picture() == before
        assert matplotlib.rcParams["text.usetex"]


def test_proposed_and_used_are_shown_of_an_image_that_has_both(drawn):
    from dataclasses import replace

    from cellkit.show.overlays import show_proposed_and_used

    proposals = [cells[1:].with_classes(0) for cells in drawn.instances]
    used = replace(drawn, made_by=["corrected"] * len(drawn)).subset([2, 4])
    ax = show_proposed_and_used(drawn, proposals, used)
    assert ax.get_title(loc="left") == drawn.records[2].image_id
    assert [text.split()[0] for text in texts(ax)] == ["proposed", "used"] and "(corrected)" in texts(ax)[1]
    none = show_proposed_and_used(drawn.subset([0]), proposals[:1], used)
    assert none.texts[0].get_text() == "no image has a proposal and labels"


def test_one_answer_is_shown_beside_its_labels(drawn):
    from cellkit.show.overlays import show_found

    marked = replace(drawn, made_by=["proposed", *["truth"] * 5])
    first, second = (show_found(marked, drawn.instances, k) for k in (0, 1))
    assert first.get_title(loc="left") == drawn.records[0].image_id
    assert texts(first)[-1].startswith("proposed, no truth") and texts(second)[-1].startswith("truth")
    assert any("HEK" in text for text in texts(first))


def test_the_worst_images_are_shown_worst_first(drawn):
    from cellkit.show.overlays import show_worst_images

    names = [record.image_id for record in drawn.records]
    found = {name: cells[k:] for k, (name, cells) in enumerate(zip(names, drawn.instances, strict=True))}
    lost = attribute(drawn.instances, list(found.values()), drawn.records)
    shown = show_worst_images(drawn, found, lost, 2)
    score = lost.drop_duplicates("image_id").set_index("image_id")["score"].sort_values(kind="stable")
    assert [ax.get_title(loc="left") for ax in shown] == [
        f"{name}: MAP IoU {score[name]:.3f}" for name in score.index[:2]
    ]
    assert show_worst_images(drawn.subset([]), found, attribute([], []), 2) == []


@pytest.mark.parametrize(("shift_px", "iou"), [(0, 1.0), (10, 0.65), (-10, 0.65), (60, 0.0)])
def test_iou_is_explained_by_two_cells_and_the_number(shift_px, iou):
    from cellkit.show.explained import show_iou

    ax = show_iou(shift_px=shift_px)
    assert ax.get_title(loc="left").endswith(f"= {iou:.2f}")
    assert texts(ax) == ["in both", "true cell only", "found cell only"]
    assert (painted(ax, 0) == [0x56, 0xB4, 0xE9]).all(axis=2).any() == (iou > 0)


@pytest.mark.parametrize("shape", [(40, 60), (41, 63, 3), (1, 5), (3, 3, 3)])
def test_a_pyramid_is_the_image_at_half_the_size_again_and_again(shape):
    from cellkit.show.explained import show_pyramid

    axes = show_pyramid(np.full(shape, 90, np.uint8))
    sizes = [painted(ax, 0).shape[:2] for ax in axes]
    assert len(axes) == 4 and sizes[0] == shape[:2]
    assert shape[0] < 8 or sizes[1:] == [(shape[0] // 2**k, shape[1] // 2**k) for k in (1, 2, 3)]
    assert all((painted(ax, 0) == 90).all() for ax in axes)


def test_an_interval_and_the_flows_of_labels_are_drawn_or_said_to_be_missing(drawn):
    from cellkit.scores.intervals import Difference
    from cellkit.show.charts import show_interval
    from cellkit.show.explained import show_label_flows

    ax = show_interval(np.linspace(0.01, 0.05, 50), Difference(0.03, 0.01, 0.05, 4))
    assert ax.lines[0].get_xdata().tolist() == [0.01, 0.05] and ax.get_ylabel() == "of 50 draws"
    assert "no interval" in show_interval(np.zeros(0), None).texts[0].get_text()
    image, flows, _ = show_label_flows(drawn, side_px=64)
    assert image.get_title(loc="left") == drawn.records[0].image_id and flows.images[0].get_array().shape == (64, 64, 3)
    (none,) = show_label_flows(drawn.subset([]))
    assert none.texts[0].get_text() == "no image has a labelled cell"
