"""Figures of scores and networks, and the files they become."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from show_cases import COLOUR, GREY, _close_figures, painted, squares, texts  # noqa: F401

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.evaluate.classes import count_by_class
from cellkit.evaluate.evaluation import score_models, summarise
from cellkit.measure.images import Job, rows_of
from cellkit.scores.attribution import attribute
from cellkit.scores.iou import overlaps
from cellkit.scores.kaggle import kaggle
from cellkit.scores.matching import class_accuracy
from cellkit.scores.table import score_table
from cellkit.show import style
from cellkit.show.charts import (
    confusion_size,
    curve_of,
    show_confusion,
    show_curves,
    show_gains,
    show_history,
    show_scores,
)
from cellkit.show.counts import counts_size, data_size, show_counts, show_data
from cellkit.show.explained import KERNELS, flow_colours, show_convolution, show_flows
from cellkit.show.measurements import groups_of, show_measures
from cellkit.show.overlays import show_errors, show_image, show_overlay
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
    classes = pd.read_csv(path).assign(iou_background=0.9, iou_border=0.2)
    lines = [line.get_label() for line in show_history(classes)[2].lines]
    assert lines == ["background", "border"], "classes of pixels have a curve each"
    both = show_history({"cellpose_tuned": path, "maskrcnn": pd.read_csv(path)})
    assert texts(both[0]) == ["Cellpose, tuned", "Mask R-CNN"]
    path.write_text("step,loss,score,seconds\n0,,,1\n50,1.0,,20\n")
    unscored = show_history(path)
    assert [text.get_text() for text in unscored[1].texts] == ["no image was scored along the way"]
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


def test_a_class_has_the_colour_of_its_place_in_measures_too():
    record = ImageRecord("a", "a.png", 40, 60, cell_type="mixed")
    cells = squares((2, 2, 9, 9), (12, 12, 19, 20), class_ids=[1, 2])
    table = rows_of(Job(record, cells, classes=("U2OS", "NIH3T3")))
    ax = show_measures(table, classes=("U2OS", "NIH3T3"))[0]
    told = {
        name.get_text(): to_hex(bar.get_facecolor()) for name, bar in zip(ax.get_yticklabels(), ax.patches, strict=True)
    }
    places = {"mixed images (2)": 3, "NIH3T3 cells (1)": 2, "U2OS cells (1)": 1}
    assert told == {name: to_hex(class_colour(k)) for name, k in places.items()}
    assert list(groups_of(table.assign(**{"class": "cell"}))) == ["mixed images", "cells"]


def boxes_of(drawn: list) -> list:
    return [one.get_window_extent() for one in drawn]


def test_many_long_names_have_their_place_in_counts_confusion_and_sheet():
    names = [f"granulocyte of kind {k}" for k in range(8)]
    rows = [{"image_id": i, "class_name": n, "found": 3, "truth": 4} for i in ("a", "b", "all") for n in names]
    counts = pd.DataFrame(rows)
    figure = new_figure(*counts_size(counts))
    ax = show_counts(counts, figure.subplots())
    to_png(ax)
    box = ax.get_legend().get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 > -2
    assert ax.get_window_extent().width > 0.7 * figure.bbox.width
    table = pd.DataFrame(np.ones((9, 9)), [*names, "invented"], [*names, "missed"])
    figure = new_figure(*confusion_size(table))
    ax = show_confusion(table, figure.subplots())
    to_png(ax)
    ends = [box.x1 for box in boxes_of(ax.get_xticklabels())]  # of tilted names: each ends below its own column
    assert min(np.diff(ends)) > 40 and {label.get_rotation() for label in ax.get_xticklabels()} == {30}
    points = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    light = {name: {colour: points for colour in ("red", "green", "blue")} for name in names}
    sheet = {
        "area_px": dict.fromkeys(names, points), "light": light, "ground": light[names[0]], "channels": [], "by_split": [],
        "classes_by_split": {}, "faults": {}, "cells": 8,
    }  # fmt: skip
    assert data_size(sheet | {"light": {}}) == (9.6, 3.2 + 1.4 + 0.26 * 8)
    axes = show_data(sheet, new_figure(*data_size(sheet)))
    to_png(axes)
    below = boxes_of(axes[1, 0].get_yticklabels())
    assert len(below) == 27 and all(one.y0 >= two.y1 for one, two in zip(below, below[1:], strict=False))


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
