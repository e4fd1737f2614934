"""Pictures: what is drawn where, on any image and any number of objects; what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from show_cases import COLOUR, GREY, _close_figures, painted, squares, texts  # noqa: F401

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.files import write_table
from cellkit.show.conversion import _levels_of, show_conversion
from cellkit.show.overlays import outline_of, show_errors, show_image, show_overlay, verdicts
from cellkit.show.sheets import show_crops, show_sheet, show_side_by_side
from cellkit.show.style import (
    class_colour,
    to_png,
)

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


def test_where_the_truth_is_boxes_a_cell_is_judged_by_its_box():
    image, (y, x) = np.zeros((40, 40, 3), np.uint8), np.indices((40, 40))
    down, across = abs(y - 20), abs(x - 20)
    cross = Instances.from_masks([(down < 10) & (across < 10) & ((down < 3) | (across < 3))], (40, 40), [1])
    assert verdicts(cross.as_boxes(), cross)[0].tolist() == ["missed"], "it fills less than half of its box"
    told = [text.get_text() for text in show_errors(image, cross.as_boxes(), cross).get_legend().get_texts()]
    assert "hit 1" in told and "missed 0" in told


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
    row = {"image_id": "=1+1", "colour": "blue", "channel": "-", "low": 1.0, "high": 2.0}
    assert _levels_of(write_table(tmp_path / "signs.csv", [row]), "=1+1") == [("blue", "-", 1.0, 2.0)]
    gone = show_conversion(tmp_path / "run", tmp_path / "elsewhere", converted.images.records[0])
    assert [ax.get_title(loc="left") for ax in gone[:2]] == ["GFP: in green", "DAPI: in blue"]


def test_a_channel_that_nobody_uses_may_hold_no_numbers_or_be_damaged(tmp_path, capsys):
    import tifffile

    from cellkit.config.sections import ChannelsConfig, ConvertConfig
    from cellkit.sources.ingest import convert_images

    grey = np.random.default_rng(0).integers(10, 250, (3, 24, 32))
    odd = np.where(np.arange(3)[:, None, None] == 2, np.nan, grey).astype(np.float32)
    odd[2, 5:] = 7.5
    (tmp_path / "raw").mkdir()
    tifffile.imwrite(tmp_path / "raw" / "a.tif", odd, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "raw" / "b.tif", grey.astype(np.uint16), metadata={"axes": "CYX"}, ome=True, compression="zlib",
                     photometric="minisblack")  # fmt: skip
    with tifffile.TiffFile(tmp_path / "raw" / "b.tif") as file:
        begin, count = file.pages[2].dataoffsets[0], file.pages[2].databytecounts[0]
    content = bytearray((tmp_path / "raw" / "b.tif").read_bytes())
    content[begin : begin + count] = b"U" * count
    (tmp_path / "raw" / "b.tif").write_bytes(content)
    cfg = ConvertConfig(source="folder", classes=("A",), channels=ChannelsConfig(nuclei=0), axes="CYX")
    converted = convert_images(cfg, tmp_path / "raw", tmp_path / "run")
    axes = [show_conversion(tmp_path / "run", tmp_path / "raw", one, cfg) for one in converted.images.records]
    assert [len(one) for one in axes] == [7, 2], (
        "three planes with their values and the picture; the picture and its channel"
    )
    assert "b is shown without its file: b.tif" in capsys.readouterr().err
    small = cfg.model_copy(update={"max_plane_px": 700})
    assert len(show_conversion(tmp_path / "run", tmp_path / "raw", converted.images.records[0], small)) == 2


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


def test_side_by_side_shows_the_image_alone_its_boxes_and_what_is_found(drawn):
    image, cells = drawn[0]
    boxes = cells.as_boxes()
    axes = show_side_by_side(image, {"original": None, "boxes": boxes, "found": cells[:2]}, drawn.classes)
    assert [ax.get_title(loc="left") for ax in axes] == ["original", f"boxes: {len(cells)}", "found: 2"]
    assert [len(ax.images) for ax in axes] == [1, 2, 2]
    legend = axes[0].get_figure().legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["HEK (2)"]
    with pytest.raises(UserError, match="the image is 128 x 128 px, its objects are of 4 x 4 px"):
        show_side_by_side(image, {"found": Instances.empty((4, 4))})


def test_crops_are_rows_of_single_cells(drawn):
    axes = show_crops(drawn, n=4)
    assert axes.shape == (2, 4)
    of = [sum(len(x) for x in drawn.instances[k::2]) for k in (0, 1)]
    assert [row[0].texts[0].get_text() for row in axes] == [f"HEK: 4 of {of[0]}", f"N2a: 4 of {of[1]}"]
    sides = {tuple(np.abs(np.diff([ax.get_xlim(), ax.get_ylim()])).ravel()) for ax in axes.flat if ax.images}
    assert len(sides) == 1  # one scale
    assert show_crops(replace(drawn.subset([0]), instances=[Instances.empty((96, 96))])).shape == (1, 8)


# ---- what is not annotated -------------------------------------------------------------------------------------------
def test_what_is_not_annotated_lies_under_a_grey_veil_and_is_not_judged():
    region = np.zeros((40, 60), bool)
    region[:, 40:] = True
    truth, found = squares((5, 5, 20, 20)), squares((5, 5, 20, 20), (5, 45, 20, 55), (25, 5, 35, 15))
    marked = truth.with_unknown(region)
    for ax, layer in (
        (show_overlay(COLOUR, found, marked), 1),
        (show_overlay(COLOUR, marked), 1),
        (show_errors(GREY, marked, found), 1),
    ):
        veil = painted(ax, layer)
        scale = veil.shape[0] // 40
        alpha = veil[::scale, ::scale, 3][:40, :60]
        assert (alpha[:, 40:] > 0).all() and not alpha[:, :40].any()
        assert len(np.unique(veil[..., 0][veil[..., 3] > 0])) == 2, "striped"
        assert texts(ax)[-1] == "not annotated"
    assert [text for text in texts(show_errors(GREY, marked, found)) if "invented" in text] == ["invented 1"]
    assert [text for text in texts(show_errors(GREY, truth, found)) if "invented" in text] == ["invented 2"]
    assert "not annotated" not in texts(show_overlay(COLOUR, found, truth))
