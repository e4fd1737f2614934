"""Cells to and from labelling tools: no pixel lost, the tools' own readers agree, and no file does harm."""

import io
import json
import logging
import os
import random
import stat
import struct
import time
import unicodedata
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_png
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.any import format_of, read_folder, write_folder
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels, write_labels
from cellkit.formats.labels import write_label_png
from cellkit.formats.plain_pickle import read_plain_npy
from cellkit.formats.roi import read_rois, write_rois
from cellkit.formats.seg import class_colours, read_seg, write_seg

CLASSES = ("HEK", "N2a, é")
TWO = np.array([[1, 1, 0, 0, 2], [1, 1, 0, 2, 0], [0, 0, 0, 2, 2]])


def two(**kwargs):
    return Instances.from_labels(TWO, **{"class_ids": [2, 1], **kwargs})


def crowded(shape=(520, 704), cells=1500):
    """A label image as full as LIVECell's."""
    labels = np.zeros(shape, np.int32)
    yy, xx = np.mgrid[-6:7, -7:8]
    disc = (yy / 6) ** 2 + (xx / 7) ** 2 <= 1
    places = [(y, x) for y in range(7, shape[0] - 7, 13) for x in range(8, shape[1] - 8, 14)]
    for k, (y, x) in enumerate(places[:cells], 1):
        labels[y - 6 : y + 7, x - 7 : x + 8][disc] = k
    return labels


@st.composite
def cells(draw, overlapping=True):
    """Some objects with class and score: scattered pixels, so holes, pieces, corners and single pixels abound."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    if overlapping:
        masks = draw(hnp.arrays(bool, (draw(st.integers(0, 4)), *shape)))
        found = Instances.from_masks(masks, shape)
    else:
        found = Instances.from_labels(draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 4))))
    found = found[found.areas_px > 0]
    count = len(found)
    ids = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    scores = draw(st.lists(st.sampled_from([1.0, 0.5, 0.123456789]), min_size=count, max_size=count))
    return found.with_classes(ids).with_scores(scores)


def refused(read, *arguments, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        read(*arguments, **kwargs)
    assert str(arguments[0]) in str(error.value), "the file is named"
    return str(error.value)


# ---- _seg.npy ------------------------------------------------------------------------------------------------------
def test_a_seg_file_as_it_is_written(tmp_path):
    image = np.arange(15, dtype=np.uint8).reshape(3, 5)
    write_seg(tmp_path / "a_seg.npy", image, two(), CLASSES, filename="a.png", diameter_px=30)
    fields = np.load(tmp_path / "a_seg.npy", allow_pickle=True).item()
    np.testing.assert_array_equal(fields["masks"], TWO)
    np.testing.assert_array_equal(fields["outlines"], TWO)  # cells this small are all edge
    assert (fields["masks"].dtype, fields["outlines"].dtype) == (np.uint16, np.uint16)
    np.testing.assert_array_equal(fields["img"], np.stack([image, 0 * image, 0 * image], -1))
    np.testing.assert_array_equal(fields["colors"], class_colours(2)[[2, 1]])
    assert (fields["filename"], fields["diameter"], fields["ismanual"].tolist()) == ("a.png", 30.0, [False, False])
    assert sorted(fields) == ["cellkit", "colors", "diameter", "filename", "flows", "img", "ismanual", "manual_changes",
                              "masks", "outlines", "ratio", "restore"]  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "a_seg.npy"]


@settings(max_examples=100, deadline=None)
@given(cells(overlapping=False))
def test_seg_files_come_back(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("seg") / "a_seg.npy"
    seg = read_seg(write_seg(path, None, found, CLASSES))
    assert seg.instances == found
    np.testing.assert_array_equal(seg.labels, found.paint())
    assert (seg.classes, seg.filename, seg.image) == (CLASSES, "a", None)


def test_of_overlapping_cells_the_higher_score_stays_and_a_hidden_one_is_left_out(tmp_path):
    masks = np.zeros((3, 4, 4), bool)
    masks[0, :2], masks[1, 0, 0], masks[2, 1:3] = True, True, True
    found = Instances.from_masks(masks, (4, 4), class_ids=[1, 2, 2], scores=[0.5, 0.4, 0.9])
    seg = read_seg(write_seg(tmp_path / "a_seg.npy", None, found, CLASSES))
    np.testing.assert_array_equal(seg.labels, [[1] * 4, [2] * 4, [2] * 4, [0] * 4])
    assert (seg.instances.class_ids.tolist(), seg.instances.scores.tolist()) == ([1, 2], [0.5, 0.9])


def test_label_images_of_any_number_of_cells(tmp_path):
    labels = np.arange(70_000, dtype=np.int32).reshape(280, 250)
    seg = read_seg(write_seg(tmp_path / "a_seg.npy", None, labels))
    np.testing.assert_array_equal(seg.labels, labels)
    assert seg.fields["masks"].dtype == np.uint32
    empty = read_seg(write_seg(tmp_path / "b_seg.npy", None, np.zeros((3, 4), int), CLASSES))
    assert (len(empty.instances), empty.labels.shape, empty.classes) == (0, (3, 4), CLASSES)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"path": "a.npy"}, "end it with _seg.npy"),
        ({"cells": np.zeros((2, 3, 4), int)}, "those of a stack"),
        ({"image": np.zeros((5, 3))}, "the image of a_seg.npy is"),
        ({"image": np.zeros((3, 5, 4))}, "4 channels"),
        ({"classes": ("HEK",)}, "class 2 of 1"),
    ],
)
def test_seg_files_that_cannot_be_written(tmp_path, change, reason):
    wanted = {"path": "a_seg.npy", "image": None, "cells": two(), "classes": CLASSES} | change
    with pytest.raises(UserError, match=reason):
        write_seg(tmp_path / wanted.pop("path"), *wanted.values())
    assert not list(tmp_path.iterdir())


def saved(folder, **fields):
    np.save(folder / "a_seg.npy", fields)
    return folder / "a_seg.npy"


def test_files_of_other_versions_are_read(tmp_path):
    np.testing.assert_array_equal(read_seg(saved(tmp_path, masks=TWO[None].astype(np.uint16))).labels, TWO)
    np.testing.assert_array_equal(read_seg(saved(tmp_path, masks=(TWO - 1).astype(np.int32))).labels, TWO)
    gaps = read_seg(saved(tmp_path, masks=TWO * 7, ismanual=np.array([True, False]), img=np.ones((3, 5))))
    assert (gaps.labels.max(), len(gaps.instances), gaps.by_hand.tolist()) == (14, 2, [True, False])
    assert gaps.image.shape == (3, 5)
    assert read_seg(saved(tmp_path, masks=TWO, ismanual=np.zeros(9, bool), img=[], filename=3)).filename == ""


BAND = np.array([[-1, -1, -1, 1, 0, 0], [-1, -1, -1, 1, 0, 2], [-1, -1, -1, 0, 0, 2]])


def test_minus_one_is_background_in_the_oldest_files_only(tmp_path):
    """Cellpose once counted masks and outlines from -1; elsewhere -1 means not annotated, and 0 stays background."""
    old = TWO - 1
    for edges in ({}, {"outlines": np.where(old == 1, 1, -1)}, {"outlines": old[None]}):
        np.testing.assert_array_equal(read_seg(saved(tmp_path, masks=old, **edges)).labels, TWO)
    assert not read_seg(saved(tmp_path, masks=np.full((3, 5), -1))).labels.any()
    for edges in ({}, {"outlines": np.where(BAND > 0, BAND, 0)}, {"outlines": np.zeros_like(BAND)}):
        assert "marks 9 px with -1, which means not annotated" in refused(
            read_seg, saved(tmp_path, masks=BAND, **edges)
        )
    one = np.where(BAND > 0, 0, BAND)  # no cell but background, or one old cell: not to be told
    assert "not annotated" in refused(read_seg, saved(tmp_path, masks=one))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_a_bare_array_called_seg_is_read_as_labels(tmp_path, dtype):
    labels = TWO.astype(dtype)
    np.save(tmp_path / "a_seg.npy", labels)
    np.testing.assert_array_equal(read_seg(tmp_path / "a_seg.npy").labels, labels)
    np.save(tmp_path / "b_seg.npy", TWO * 0.5)
    assert "float64" in refused(read_seg, tmp_path / "b_seg.npy")
    (tmp_path / "c_seg.npy").write_bytes((tmp_path / "a_seg.npy").read_bytes()[:-2])
    refused(read_seg, tmp_path / "c_seg.npy")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"outlines": 1}, "has no masks"),
        ({"masks": [1]}, "has no masks"),
        ({"masks": np.zeros((4, 5, 6), int)}, "a stack of 4 planes"),
        ({"masks": np.zeros((4, 5), np.float32)}, "float32"),
        ({"masks": np.zeros((0, 5), int)}, "masks are"),
        ({"masks": TWO - 2}, "ids from -2"),
        ({"masks": TWO.astype(np.uint64) + 2**40}, "ids from"),
        (
            {"masks": TWO, "cellkit": {"classes": ["a"], "class_ids": np.zeros(3, int), "scores": np.ones(3)}},
            "of others",
        ),
        (
            {"masks": TWO, "cellkit": {"classes": ["a"], "class_ids": np.array([1, 2]), "scores": np.ones(2)}},
            "class 2 of 1",
        ),
    ],
)
def test_seg_files_that_cannot_be_read(tmp_path, fields, reason):
    assert reason in refused(read_seg, saved(tmp_path, **fields))


def test_a_score_that_is_none(tmp_path):
    side = {"classes": ["a"], "class_ids": np.array([1, 1]), "scores": np.array([np.nan, 1])}
    assert "no number from 0 to 1" in refused(read_seg, saved(tmp_path, masks=TWO, cellkit=side))


def test_a_seg_file_runs_nothing(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    message = refused(read_seg, saved(tmp_path, masks=TWO, flows=[Attack()]))
    assert "system, which no array needs" in message
    assert not (tmp_path / "ran").exists()


# ---- _seg.npy and the real Cellpose --------------------------------------------------------------------------------
class Count:
    """As in cellpose.gui.gui: a number that is set and got."""

    def __init__(self):
        self.value = 0

    def set(self, value):
        self.value = int(value)

    def get(self):
        return self.value

    def __eq__(self, other):
        return self.value == other

    def __gt__(self, other):
        return self.value > other


def window():
    """What Cellpose's readers and writers use of the main window; all that draws does nothing."""
    nothing = lambda *a, **k: None  # noqa: E731
    names = ("enable_buttons", "update_layer", "update_plot", "draw_layer", "toggle_mask_ops", "clear_all", "compute_scale",
             "compute_saturation", "reset", "set_normalize_params")  # fmt: skip
    return SimpleNamespace(
        **dict.fromkeys(names, nothing),
        logger=logging.getLogger("gui"),
        ncells=Count(),
        colormap=np.arange(9000, dtype=np.uint8).reshape(-1, 3),
        ViewDropDown=SimpleNamespace(count=lambda: 1, setCurrentIndex=nothing),
        RGBDropDown=SimpleNamespace(name_map={"rgb": 0}),
        segmentation_settings=SimpleNamespace(flow_threshold=0.4, cellprob_threshold=0.0, diameter=30.0),
        get_normalize_params=lambda: {"lowhigh": None, "percentile": [1.0, 99.0], "tile_norm_blocksize": 0},
        color="rgb",
        load_3D=False,
        flows=[[], [], [], [], [[]]],
    )


@pytest.fixture
def opened(tmp_path):
    """A file of ours, opened by the GUI's own reader."""
    from cellpose.gui import io as gui

    image = np.random.default_rng(0).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    path = write_seg(tmp_path / "a_seg.npy", image, two(), CLASSES, filename="a.png")
    parent = window()
    gui._load_seg(parent, str(path))
    return parent, image, path


def test_the_gui_reads_ours(opened):
    parent, image, path = opened
    assert parent.loaded
    np.testing.assert_array_equal(parent.cellpix[0], TWO)
    np.testing.assert_array_equal(parent.cellcolors[1:], class_colours(2)[[2, 1]])
    assert (parent.ncells.get(), parent.ismanual.tolist(), parent.track_changes) == (2, [False, False], [])
    assert (parent.restore, parent.recompute_masks) == (None, False)
    assert parent.stack.shape == (1, 3, 5, 3), "no image file: the picture comes from the file"
    low, high = int(image.min()), int(image.max())
    np.testing.assert_allclose(parent.stack[0], (image.astype(float) - low) / (high - low) * 255, atol=1e-3)


def test_the_gui_prefers_the_picture_beside(tmp_path):
    from cellpose.gui import io as gui

    picture = np.random.default_rng(1).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", picture)
    path = write_seg(tmp_path / "a_seg.npy", None, two(), CLASSES, filename="a.png")
    parent = window()
    gui._load_seg(parent, str(path))
    assert parent.loaded and parent.filename == f"{tmp_path}/a.png"
    assert parent.stack.shape == (1, 3, 5, 3)


def test_after_the_gui_saved_the_colours_tell_the_class(opened):
    from cellpose.gui import io as gui

    parent, _, path = opened
    parent.cellpix[0, 2, 0] = 3  # a cell drawn by hand, in a colour of the GUI's
    parent.outpix[0, 2, 0] = 3
    parent.cellcolors = np.append(parent.cellcolors, [[9, 9, 9]], axis=0).astype(np.uint8)
    parent.ismanual = np.append(parent.ismanual, True)
    parent.track_changes.append(["11/21/2026, 10:00:00", "added mask", [np.array([2]), np.array([0])]])
    parent.filename = str(path.with_name("a.png"))
    gui._save_sets(parent)
    assert "cellkit" not in read_plain_npy(path), "the GUI drops what it does not know"
    seg = read_seg(path, CLASSES)
    np.testing.assert_array_equal(seg.labels, parent.cellpix[0])
    assert (seg.instances.class_ids.tolist(), seg.by_hand.tolist()) == ([2, 1, 0], [False, False, True])
    assert read_seg(path).instances.class_ids.tolist() == [0, 0, 0]
    assert refused(read_seg, saved(path.parent, masks=TWO, colors=np.zeros((5, 3), np.uint8)), CLASSES).count(
        "5 colours"
    )


def test_what_cellpose_saves_is_read(tmp_path):
    from cellpose import io as cellpose_io

    flows = [np.zeros((3, 5, 3), np.uint8), np.zeros((2, 3, 5), np.float32), np.zeros((3, 5), np.float32)]
    name = str(tmp_path / "a.png")
    cellpose_io.masks_flows_to_seg(np.zeros((3, 5, 3)), TWO.astype(np.uint16), flows, name)
    seg = read_seg(tmp_path / "a_seg.npy")
    np.testing.assert_array_equal(seg.labels, TWO)
    assert (seg.filename, seg.by_hand.tolist()) == (name, [False, False])
    assert len(seg.fields["flows"]) == 5


def test_cellpose_reads_our_label_pictures_as_training_labels(tmp_path):
    from cellpose import io as cellpose_io

    write_png(tmp_path / "a.png", np.zeros((3, 5, 3), np.uint8))
    write_png(tmp_path / "b.png", np.zeros((3, 5, 3), np.uint8))
    write_labels(tmp_path / "a_cp_masks.tif", TWO)
    write_labels(tmp_path / "b_cp_masks.tif", TWO * 2)
    _, labels, _ = cellpose_io.load_images_labels(str(tmp_path), mask_filter="_cp_masks")
    np.testing.assert_array_equal(labels[0], TWO)
    np.testing.assert_array_equal(labels[1], TWO * 2)
    write_label_png(tmp_path / "c_masks.png", TWO * 30_000)
    np.testing.assert_array_equal(cellpose_io.imread(str(tmp_path / "c_masks.png")), TWO * 30_000)


def test_tripwire_the_keys_that_cellpose_reads():
    """If Cellpose reads other keys than these, look at `write_seg` again."""
    import inspect
    import re

    from cellpose.gui import io as gui

    source = inspect.getsource(gui._load_seg)
    keys = set(re.findall(r"""dat\[["'](\w+)["']\]""", source)) | set(re.findall(r"""["'](\w+)["'] in dat""", source))
    assert keys == {"outlines", "filename", "img", "normalize_params", "colors", "masks", "manual_changes", "zdraw",
                    "ismanual", "current_channel", "flows"}  # fmt: skip


def test_no_colour_of_ours_is_one_of_the_guis():
    from matplotlib import colormaps

    theirs = (colormaps["gist_ncar"](np.linspace(0, 0.9, 1_000_000)) * 255).astype(np.uint8)[:, :3]
    theirs = {tuple(colour) for colour in np.unique(theirs, axis=0).tolist()}
    ours = {tuple(colour) for colour in class_colours(255).tolist()}
    assert len(ours) == 256
    assert not ours & theirs


# ---- ROI zips ------------------------------------------------------------------------------------------------------
def test_a_roi_zip_as_it_is_written(tmp_path):
    path = write_rois(tmp_path / "a_rois.zip", two(scores=[1, 0.25]), CLASSES)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["0001.roi", "0002.roi"]
        square, other = (ImagejRoi.frombytes(archive.read(name)) for name in archive.namelist())
    assert (square.roitype, square.name, square.group) == (ROI_TYPE.TRACED, "0001", 2)
    assert square.coordinates().tolist() == [[0, 0], [2, 0], [2, 2], [0, 2]]
    assert square.props == "cellkit.classes: HEK,N2a%2C%20%C3%A9\ncellkit.shape: 3,5\n"
    assert (other.group, other.props.splitlines()[-1]) == (1, "cellkit.score: 0.25")
    again = write_rois(tmp_path / "b_rois.zip", two(scores=[1, 0.25]), CLASSES)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(tmp_path.iterdir()) == [path, again]


@settings(max_examples=150, deadline=None)
@given(cells())
def test_rois_come_back_pixel_by_pixel(tmp_path_factory, found):
    path = write_rois(tmp_path_factory.mktemp("roi") / "a_rois.zip", found, CLASSES)
    rois = read_rois(path)
    assert rois.instances == found
    assert rois.classes == CLASSES
    assert read_rois(path, found.shape).instances == found


def test_a_ring_and_a_cell_of_two_pieces_are_composites(tmp_path):
    labels = np.array([[1, 1, 1, 0, 2], [1, 0, 1, 0, 0], [1, 1, 1, 0, 2]])
    found = Instances.from_labels(labels)
    path = write_rois(tmp_path / "a.zip", found)
    with zipfile.ZipFile(path) as archive:
        rois = [ImagejRoi.frombytes(archive.read(name)) for name in archive.namelist()]
    assert [roi.composite for roi in rois] == [True, True]
    assert rois[0].coordinates(multi=True)[1].tolist() == [[2, 1], [1, 1], [1, 2], [2, 2], [2, 1]]
    assert read_rois(path).instances == found


def test_an_image_wider_than_imagejs_integers(tmp_path):
    labels = np.zeros((3, 90_000), np.int32)
    labels[0, 1:], labels[1:, 5], labels[2, 60_000:80_000], labels[1, 32_766] = 1, 2, 3, 4
    found = Instances.from_labels(labels)
    assert read_rois(write_rois(tmp_path / "a.zip", found)).instances == found


@pytest.mark.parametrize(
    ("path", "found", "classes", "reason"),
    [
        ("a.roi", two(), CLASSES, "end it with .zip"),
        ("a.zip", two(), ("HEK",), "class 2 of 1"),
        ("a.zip", two(class_ids=[-1, 0]), CLASSES, "name every class"),
        ("a.zip", two(), tuple(map(str, range(256))), "256 classes"),
        ("a.zip", Instances.from_runs((2, 2), [0], [1], [0, 1, 1]), (), "cell 2 of a.zip has no pixel"),
    ],
)
def test_rois_that_cannot_be_written(tmp_path, path, found, classes, reason):
    with pytest.raises(UserError, match=reason):
        write_rois(tmp_path / path, found, classes)
    assert not list(tmp_path.iterdir())


def roi(kind=ROI_TYPE.POLYGON, points=None, **fields):
    """A ROI as Fiji would save it."""
    if points is None:
        return ImagejRoi(roitype=kind, **fields)
    made = ImagejRoi.frompoints(np.array(points))
    made.roitype = kind
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def zipped(folder, *rois, name="RoiSet.zip"):
    with zipfile.ZipFile(folder / name, "w") as archive:
        for k, member in enumerate(rois):
            archive.writestr(f"{k:04d}.roi", member if isinstance(member, bytes) else member.tobytes())
    return folder / name


def composite(*numbers):
    path = np.array(numbers, np.float32)
    return roi(ROI_TYPE.RECT, right=3, bottom=3, shape_roi_size=len(path), multi_coordinates=path)


def floating(*points):
    """A polygon with sub-pixel corners, whatever they are."""
    made = roi(ROI_TYPE.POLYGON, np.zeros((len(points), 2), int), options=ROI_OPTIONS.SUB_PIXEL_RESOLUTION)
    made.subpixel_coordinates = np.array(points, np.float32)
    return made


def ellipse(**fields):
    return roi(ROI_TYPE.FREEHAND, [[0, 0], [1, 1], [2, 2]], subtype=ROI_SUBTYPE.ELLIPSE, **fields)


def ratio(value):
    """What the bytes of arrow style and head say as a number."""
    style, head, arc = struct.unpack(">BBh", struct.pack(">f", value))
    return {"arrow_style_or_aspect_ratio": style, "arrow_head_size": head, "rounded_rect_arc_size": arc}


@pytest.mark.parametrize(
    ("member", "mask"),
    [
        (roi(ROI_TYPE.RECT, left=1, top=0, right=3, bottom=2), ["011000", "011000", "000000", "000000"]),
        (
            roi(ROI_TYPE.RECT, options=ROI_OPTIONS.SUB_PIXEL_RESOLUTION, left=1, top=1, right=3, bottom=2,
                xd=0.6, yd=0.4, widthd=2.0, heightd=1.0),
            ["011000", "000000", "000000", "000000"],
        ),
        (roi(ROI_TYPE.OVAL, left=0, top=0, right=4, bottom=4), ["011000", "111100", "111100", "011000"]),
        (roi(ROI_TYPE.OVAL, left=2, top=1, right=3, bottom=2), ["000000", "001000", "000000", "000000"]),
        (roi(ROI_TYPE.OVAL, left=-2, top=-2, right=2, bottom=2), ["110000", "100000", "000000", "000000"]),
        (
            roi(ROI_TYPE.OVAL, options=ROI_OPTIONS.SUB_PIXEL_RESOLUTION, left=0, top=0, right=3, bottom=3,
                xd=0.5, yd=0.5, widthd=2.0, heightd=2.0),
            ["010000", "111000", "010000", "000000"],
        ),
        (roi(ROI_TYPE.RECT, left=0, top=0, right=6, bottom=4, rounded_rect_arc_size=4),
         ["011110", "111111", "111111", "011110"]),
        (roi(ROI_TYPE.POLYGON, [[0, 0], [4, 0], [0, 4]]), ["111100", "111000", "110000", "100000"]),
        (roi(ROI_TYPE.FREEHAND, [[1, 1], [5, 1], [5, 3], [1, 3]]), ["000000", "011110", "011110", "000000"]),
        (roi(ROI_TYPE.TRACED, [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [0, 2]]), ["100000", "110000", "000000", "000000"]),
        (roi(ROI_TYPE.POLYGON, [[0.6, 0.6], [2.4, 0.6], [2.4, 2.6], [0.6, 2.6]]), ["000000", "010000", "010000", "000000"]),
        (ellipse(x1=1.0, y1=2.0, x2=5.0, y2=2.0, **ratio(0.5)), ["000000", "011110", "011110", "000000"]),
        (
            roi(ROI_TYPE.FREEHAND, [[0, 0], [1, 1], [2, 2]], subtype=ROI_SUBTYPE.ROTATED_RECT, x1=0.0, y1=2.0, x2=4.0, y2=2.0,
                **ratio(2.0)),
            ["000000", "111100", "111100", "000000"],
        ),
        (composite(0, 0, 0, 1, 3, 0, 1, 3, 3, 1, 0, 3, 4, 0, 1, 1, 1, 1, 2, 1, 2, 2, 1, 2, 1, 4),
         ["111000", "101000", "111000", "000000"]),
        (composite(0, 0, 0, 3, 8, 0, 8, 4, 0, 4, 1, 0, 4, 4), ["111100", "111111", "111111", "111100"]),  # a cubic curve
        (composite(0, 0, 0, 2, 8, 2, 0, 4, 4), ["110000", "111100", "111100", "110000"]),  # a quadratic one
    ],
)  # fmt: skip
def test_selections_of_every_kind(tmp_path, member, mask):
    rois = read_rois(zipped(tmp_path, member), (4, 6))
    got = rois.instances.mask(0)
    wanted = np.array([[c == "1" for c in row] for row in mask])
    known = np.array([[c != "?" for c in row] for row in mask])
    np.testing.assert_array_equal(got[known], wanted[known])
    assert (rois.names, rois.classes) == (["0000"], ())


def test_groups_of_fiji_are_classes(tmp_path):
    square = [[0, 0], [2, 0], [2, 2], [0, 2]]
    path = zipped(tmp_path, roi(points=square, group=2), roi(points=square), roi(points=square, group=1))
    rois = read_rois(path, (3, 3))
    assert (rois.classes, rois.instances.class_ids.tolist()) == (("group 1", "group 2"), [2, 0, 1])


def test_after_fiji_the_classes_are_still_known(tmp_path):
    """Fiji keeps group and properties of what it opened; a new ROI has neither, and the comment of the zip is gone."""
    written = write_rois(tmp_path / "a_rois.zip", two(), CLASSES)
    with zipfile.ZipFile(written) as archive:
        kept = ImagejRoi.frombytes(archive.read("0002.roi"))
    kept.group = 2  # the person changed its class
    path = zipped(
        tmp_path, kept, roi(points=[[0, 0], [1, 0], [1, 1], [0, 1]], group=1), roi(ROI_TYPE.OVAL, right=3, bottom=3)
    )
    rois = read_rois(path)
    assert (rois.classes, rois.instances.class_ids.tolist()) == (CLASSES, [2, 1, 0])
    assert rois.instances.shape == (3, 5)


def test_cellposes_own_zips_are_read_as_imagej_reads_them(tmp_path):
    """Cellpose draws through the centres of the outermost pixels: ImageJ then leaves out the last column and row."""
    from cellpose import io as cellpose_io

    labels = np.zeros((20, 30), np.uint16)
    labels[3:9, 4:12], labels[10:18, 15:25] = 1, 2
    cellpose_io.save_rois(labels, str(tmp_path / "a.png"))
    found = read_rois(tmp_path / "a_rois.zip", (20, 30)).instances
    assert found.boxes_xywh.tolist() == [[4, 3, 7, 5], [15, 10, 9, 7]]


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (roi(ROI_TYPE.LINE, x2=3.0), "0000.roi is a selection of kind line"),
        (roi(ROI_TYPE.POINT, [[1, 1]]), "kind point"),
        (roi(ROI_TYPE.POLYLINE, [[1, 1], [2, 2]]), "kind polyline"),
        (roi(ROI_TYPE.RECT, right=2, bottom=2, subtype=ROI_SUBTYPE.TEXT), "kind text"),
        (roi(points=[[0, 0], [2, 0], [2, 2]], options=ROI_OPTIONS.SPLINE_FIT), "fitted spline"),
        (roi(points=[[7, 7], [9, 7], [9, 9]]), "covers no pixel of its image of 4 x 6"),
        (roi(ROI_TYPE.RECT, left=1, right=1, top=1, bottom=3), "covers no pixel"),
        (roi(ROI_TYPE.OVAL, left=1, right=1, top=1, bottom=3), "its box is empty"),
        (floating([0, 0], [np.nan, 0], [2, 2]), "not finite"),
        (roi(ROI_TYPE.RECT, options=ROI_OPTIONS.SUB_PIXEL_RESOLUTION, right=1, bottom=1, 
             widthd=1e30, heightd=1.0), "not finite or far away"),
        (ellipse(x1=0.0, y1=0.0, x2=float("inf"), y2=0.0, **ratio(0.5)), "not finite"),
        (composite(1, 2, 2), "path is damaged"),
        (composite(0, 2), "path is damaged"),
        (composite(np.nan, 2, 2), "damaged"),
        (b"Iout", "0000.roi is no ImageJ ROI"),
        (b"MZ" * 100, "is no ImageJ ROI"),
        (roi(ROI_TYPE.POLYGON, [[0, 0], [2, 0], [2, 2]]).tobytes()[:66], "is no ImageJ ROI"),
        (roi(ROI_TYPE.RECT, right=3, bottom=3, props="cellkit.score: 7\n"), "score"),
        (roi(ROI_TYPE.RECT, right=3, bottom=3, props="cellkit.shape: 9,9\n"), "different size"),
    ],
)  # fmt: skip
def test_a_bad_roi_is_refused_by_name(tmp_path, member, reason):
    good = roi(ROI_TYPE.RECT, right=2, bottom=2)
    path = zipped(tmp_path, member, good)
    with np.errstate(all="ignore"):
        assert reason in refused(read_rois, path, (4, 6))


@pytest.mark.parametrize("axis", ["position", "z_position", "t_position"])
def test_a_roi_bound_to_no_plane_goes_with_those_of_any(tmp_path, axis):
    box = {"right": 2, "bottom": 2}
    free, bound, other = (roi(ROI_TYPE.RECT, **box, **({axis: k} if k else {})) for k in (0, 3, 4))
    assert len(read_rois(zipped(tmp_path, free, bound, bound), (4, 6)).instances) == 3
    assert "ROIs of 2 planes" in refused(read_rois, zipped(tmp_path, free, bound, other), (4, 6))


def test_rois_that_are_no_cells_are_set_aside_and_the_rest_read(said, tmp_path, pictures):
    good = roi(ROI_TYPE.RECT, right=2, bottom=2)
    bad = [b"", roi(ROI_TYPE.LINE, x2=3.0), roi(ROI_TYPE.POINT, [[1, 1]]), roi(points=[[7, 7], [9, 7], [9, 9]])]
    aside = []
    found = read_rois(zipped(tmp_path, bad[0], good, *bad[1:], good), (3, 5), aside)
    assert ([len(found.instances), found.names], len(aside)) == ([2, ["0001", "0005"]], 4)
    with pytest.raises(UserError, match="kind line"):
        read_rois(zipped(tmp_path, *bad[1:]), (3, 5), [])
    (tmp_path / "in").mkdir()
    os.replace(zipped(tmp_path, bad[1], good), tmp_path / "in/a.zip")
    code, out, err = said("coco", tmp_path / "in", "-o", tmp_path / "c.json", "--images", pictures)
    assert (code, out) == (3, f"{tmp_path / 'c.json'}: 1 image, 1 cell\n")
    assert "skipped: a.zip: " in err and "0000.roi is a selection of kind line" in err


def test_a_roi_is_called_after_the_number_of_its_cell(tmp_path, pictures):
    """A cell without pixels is left out, and the names of those behind it stay those of the label image."""
    masks = [TWO == 1, TWO == 9, TWO == 2]
    cells = Instances.from_masks(masks, (3, 5))
    done = write_folder(tmp_path / "out", records("a"), [cells], form="roi")
    rois = read_rois(tmp_path / "out/a_rois.zip")
    assert (done.left_out, rois.names) == (1, ["0001", "0003"])
    write_folder(tmp_path / "tif", records("a"), [cells])
    np.testing.assert_array_equal(np.unique(read_labels(tmp_path / "tif/a.tif")), [0, 1, 3])
    write_folder(tmp_path / "out", records("a"), [cells[[True, False, False]]], form="roi")
    assert read_rois(tmp_path / "out/a_rois.zip").names == ["0001"], "a cell that is gone does not stay in the zip"
    four = Instances.from_masks([*masks[:1], TWO == 2, TWO == 0, masks[0]], (3, 5))
    assert read_rois(write_rois(tmp_path / "b.zip", four, (), [1, 2, 3, 40])).names == ["0001", "0002", "0003", "0040"]
    with pytest.raises(UserError, match="number each cell once"):
        write_rois(tmp_path / "b.zip", two(), CLASSES, [3, 3])


def test_rois_of_several_planes_or_of_no_known_size_are_refused(tmp_path):
    first, second = (roi(ROI_TYPE.RECT, right=2, bottom=2, position=k) for k in (1, 2))
    assert "ROIs of 2 planes" in refused(read_rois, zipped(tmp_path, first, second), (4, 6))
    assert "how large its image is" in refused(read_rois, zipped(tmp_path, first))
    assert "different size" in refused(read_rois, write_rois(tmp_path / "a.zip", two(), CLASSES), (9, 9))
    for bad in ("cellkit.shape: 3\n", "cellkit.shape: 0,4\n", "cellkit.shape: 9999999,1\n"):
        assert "sizes are" in refused(read_rois, zipped(tmp_path, roi(ROI_TYPE.RECT, right=2, bottom=2, props=bad)))


def member(name, content=b"Iout", compress=zipfile.ZIP_DEFLATED, mode=0):
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, compress
    return info, content


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([member("../evil.roi")], "'../evil.roi' leads out of the zip"),
        ([member("a/../../evil.roi")], "leads out"),
        ([member("/etc/evil.roi")], "leads out"),
        ([member("C:\\evil.roi")], "leads out|leads out"),
        ([member("link.roi", b"/etc/passwd", mode=stat.S_IFLNK | 0o777)], "'link.roi' is a link"),
        ([member("run.exe")], "'run.exe' is no ROI"),
        ([member("bomb.roi", bytes(2**22))], "'bomb.roi' is packed"),
        ([member("large.roi", bytes(2**26 + 1), zipfile.ZIP_STORED)], "unpacks to 67108865 bytes"),
    ],
)
def test_a_bad_member_is_refused_by_name(tmp_path, members, reason):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0001.roi", roi(ROI_TYPE.RECT, right=2, bottom=2).tobytes())
        for info, content in members:
            archive.writestr(info, content)
    assert reason.split("|")[0] in refused(read_rois, tmp_path / "a.zip", (4, 6))
    assert list(tmp_path.iterdir()) == [tmp_path / "a.zip"], "nothing is unpacked to disk"


def test_a_member_twice_or_one_that_lies_about_its_size(tmp_path):
    content = roi(ROI_TYPE.RECT, right=2, bottom=2).tobytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("1.roi", content)
        archive.writestr("1.roi", content)
    assert "'1.roi' is there twice" in refused(read_rois, tmp_path / "a.zip", (4, 6))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.roi", content + bytes(2**22))
    data = buffer.getvalue().replace(struct.pack("<I", len(content) + 2**22), struct.pack("<I", 300))
    (tmp_path / "b.zip").write_bytes(data)
    assert "1.roi cannot be unpacked" in refused(read_rois, tmp_path / "b.zip", (4, 6))


def test_what_macos_adds_is_passed_over(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("rois/", b"")
        archive.writestr("rois/1.roi", roi(ROI_TYPE.RECT, right=2, bottom=2).tobytes())
        archive.writestr("__MACOSX/rois/._1.roi", b"junk")
        archive.writestr("rois/.DS_Store", b"junk")
    assert read_rois(tmp_path / "a.zip", (4, 6)).names == ["1"]


def test_what_is_no_zip(tmp_path):
    with pytest.raises(UserError, match="no file at"):
        read_rois(tmp_path / "none.zip")
    (tmp_path / "a.zip").write_bytes(b"PK" + bytes(50))
    assert "is no zip" in refused(read_rois, tmp_path / "a.zip")


def test_mangled_zips_are_read_or_refused(tmp_path):
    rng = random.Random(0)
    labels = np.array([[1, 1, 1, 0, 2], [1, 0, 1, 0, 0], [1, 1, 1, 0, 2]])
    with zipfile.ZipFile(write_rois(tmp_path / "a.zip", Instances.from_labels(labels))) as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    good = write_rois(tmp_path / "g.zip", Instances.from_labels(labels)).read_bytes()
    read = 0
    for turn in range(900):
        if turn % 3:
            broken = bytearray(rng.choice(contents))
            for _ in range(rng.randint(1, 3)):
                broken[rng.randrange(4, len(broken))] = rng.randrange(256)
            path = zipped(tmp_path, bytes(broken), contents[0], name="m.zip")
        else:
            broken = bytearray(good)
            broken[rng.randrange(len(broken))] = rng.randrange(256)
            path = tmp_path / "m.zip"
            path.write_bytes(bytes(broken))
        try:
            with np.errstate(all="ignore"):
                found = read_rois(path, (3, 5)).instances
            assert (found.areas_px > 0).all() and found.shape == (3, 5)
            read += 1
        except UserError as error:
            assert str(path) in str(error)
    assert 60 < read < 840


def test_a_crowded_image_takes_a_moment(tmp_path):
    labels = crowded()
    found = Instances.from_labels(labels)
    begun = time.perf_counter()
    assert read_rois(write_rois(tmp_path / "a.zip", found)).instances == found
    assert read_seg(write_seg(tmp_path / "a_seg.npy", None, found)).instances == found
    assert len(found) > 1450
    assert time.perf_counter() - begun < 10, "measured: 0.4 s"


# ---- label pictures and folders ------------------------------------------------------------------------------------
def test_label_pngs(tmp_path):
    labels = np.array([[0, 1], [300, 65_535]])
    np.testing.assert_array_equal(read_labels(write_label_png(tmp_path / "a_masks.png", labels)), labels)
    for path, wrong, reason in (
        ("b.png", labels + 1, "a PNG holds 65535"),
        ("b.tif", labels, "end it with .png"),
        ("b.png", labels - 1, "relabel first"),
        ("b.png", labels * 0.5, "relabel first"),
    ):
        with pytest.raises(UserError, match=reason):
            write_label_png(tmp_path / path, wrong)
    assert list(tmp_path.iterdir()) == [tmp_path / "a_masks.png"]


def records(*names):
    return [ImageRecord(name, f"images/{name}.png", 3, 5) for name in names]


@pytest.fixture
def pictures(tmp_path):
    for name in ("a", "b"):
        write_png(tmp_path / f"pictures/{name}.png", np.full((3, 5, 3), 9, np.uint8))
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("form", "suffix", "names"),
    [
        ("tif", "_cp_masks", ["a_cp_masks.tif", "b_cp_masks.tif"]),
        ("png", "_masks", ["a_masks.png", "b_masks.png"]),
        ("seg", "", ["a_seg.npy", "b_seg.npy"]),
        ("roi", "", ["a_rois.zip", "b_rois.zip"]),
    ],
)
def test_folders_come_back(tmp_path, pictures, form, suffix, names):
    made = [two(), Instances.empty((3, 5))]
    out = tmp_path / "out"
    done = write_folder(out, records("a", "b"), made, CLASSES, form, pictures, suffix)
    assert (done.files, done.lost, done.left_out, done.quarantined) == (2, 0, 0, [])
    assert sorted(path.name for path in out.iterdir()) == names
    side, quarantined = read_folder(out, images=pictures)
    assert quarantined == []
    assert [(r.image_id, r.path) for r in side.records] == [("a", "a.png"), ("b", "b.png")]
    kept = form in ("seg", "roi")
    assert side.classes == (CLASSES if kept else ())
    assert side.instances == [made[0] if kept else made[0].with_classes(0), made[1]]


@pytest.mark.parametrize(
    ("names", "out", "files"),
    [
        (("HEK/0.ome", "N2a/0.ome"), "out", ["HEK/0.ome_seg.npy", "N2a/0.ome_seg.npy"]),  # one name in two folders
        (("HEK/0.ome", "N2a/1.ome"), "out", ["0.ome_seg.npy", "1.ome_seg.npy"]),
        (("HEK/0.ome", "N2a/1.ome"), "s", ["HEK/0.ome_seg.npy", "N2a/1.ome_seg.npy"]),  # beside the pictures
    ],
)
@pytest.mark.parametrize("of_run", [False, True])
def test_a_seg_file_goes_where_its_picture_tells(tmp_path, names, out, files, of_run):
    for name in names:
        write_labels(tmp_path / f"s/{name}.tif", TWO)
    stems = [name.removesuffix(".ome").replace("/", "_" if of_run else "/") for name in names]
    made = [ImageRecord(stem, f"images/{stem}.png" if of_run else f"{stem}.ome.tif", 3, 5) for stem in stems]
    folder = tmp_path / out
    assert write_folder(folder, made, [two()] * 2, CLASSES, "seg", tmp_path / "s").files == 2
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*_seg.npy")) == files
    side, aside = read_folder(folder, "seg", tmp_path / "s")
    assert ([r.path for r in side.records], side.instances, aside) == ([f"{n}.tif" for n in names], [two()] * 2, [])


def test_a_single_roi_is_read_where_its_picture_is_given(tmp_path, pictures):
    made = write_rois(tmp_path / "rois.zip", two()[:1], CLASSES)
    with zipfile.ZipFile(made) as archive:
        content = archive.read(archive.namelist()[0])
    first, second, *_ = sorted(path.stem for path in pictures.glob("*.png"))
    folder = tmp_path / "fiji"
    folder.mkdir()
    write_rois(folder / f"{first}.zip", two(), CLASSES)
    (folder / f"{second}.roi").write_bytes(content)
    assert format_of(folder) == "roi"
    side, quarantined = read_folder(folder, images=pictures)
    assert [(record.image_id, len(cells)) for record, cells in zip(side.records, side.instances, strict=True)] == [
        (first, 2),
        (second, 1),
    ]
    assert side.instances[1].areas_px.tolist() == two().areas_px[:1].tolist() and not quarantined
    assert "does not say of which picture" in refused(read_folder, folder / f"{second}.roi")
    (folder / f"{second}.roi").write_bytes(b"no roi")
    assert "is no ImageJ ROI" in read_folder(folder, images=pictures)[1][0].reason


def test_pictures_without_a_label_file_are_named(tmp_path):
    for name in ("a.tif", "b.tif", "control_mask.tif"):
        write_labels(tmp_path / "all" / name, TWO)
    assert [record.path for record in read_folder(tmp_path / "all")[0].records] == [
        "a.tif",
        "b.tif",
        "control_mask.tif",
    ]
    for name in ("a.tif", "a_masks.tif", "b.tif"):
        write_labels(tmp_path / "beside" / name, TWO)
    side, quarantined = read_folder(tmp_path / "beside")
    assert [record.path for record in side.records] == ["a_masks.tif"] and not quarantined
    assert side.notes[0].startswith("left out: 1 picture without a label file (b.tif);")
    side, _ = read_folder(tmp_path / "beside", images=tmp_path / "beside")
    assert "left out: 1 picture without a label file (b.tif)" in side.notes[0] and len(side.notes) == 1
    side, _ = read_folder(tmp_path / "all", images=tmp_path / "beside")
    assert not side.notes


def test_a_grey_picture_is_no_label_image(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40))
    write_labels(tmp_path / "a.tif", noise)
    write_labels(tmp_path / "b.tif", np.kron(TWO, np.ones((8, 8), int)))
    side, (bad,) = read_folder(tmp_path)
    assert [record.path for record in side.records] == ["b.tif"] and "grey picture" in bad.reason


def test_corrections_of_the_gui_are_not_written_over(tmp_path, pictures):
    arguments = (pictures, records("a", "b"), [two(), two()], CLASSES, "seg", pictures)
    assert write_folder(*arguments).files == 2
    assert write_folder(*arguments).files == 2, "our own may be written again"
    np.save(pictures / "a_seg.npy", {"masks": TWO * 3, "outlines": TWO})
    done = write_folder(*arguments)
    assert (done.files, done.quarantined[0].item) == (1, "a")
    assert "may hold corrections" in done.quarantined[0].reason
    assert read_seg(pictures / "a_seg.npy").labels.max() == 6


@pytest.mark.parametrize("form", ["tif", "png", "seg"])
def test_label_files_changed_by_hand_are_not_written_over(tmp_path, pictures, form):
    write = lambda cells: write_folder(tmp_path / "l", records("a", "b"), cells, CLASSES, form, pictures)  # noqa: E731
    by_hand = {"tif": write_labels, "png": write_label_png, "seg": lambda path, labels: write_seg(path, None, labels)}
    assert write([two(), two()]).files == write([two(), Instances.empty((3, 5))]).files == 2, "our own, in other cells"
    path = sorted((tmp_path / "l").iterdir())[0]
    by_hand[form](path, two().paint())
    assert write([two(), two()]).files == 2, "the same cells: nothing is lost"
    by_hand[form](path, two().paint()[::-1])
    before = path.read_bytes()
    done = write([two(), two()])
    assert (done.files, done.quarantined[0].item, path.read_bytes()) == (1, "a", before)
    assert "made by hand or by another program: it may hold corrections" in done.quarantined[0].reason


@pytest.mark.parametrize("image_id", ["../../evil", "a/b", "con", "-x", "."])
def test_an_id_is_no_path(tmp_path, image_id):  # fault 52
    write_folder(tmp_path / "labels", [ImageRecord(image_id, "x.png", 3, 5)], [two()])
    (name,) = [path.name for path in (tmp_path / "labels").iterdir()]
    assert not name.startswith((".", "-"))
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


def test_two_ids_that_become_one_file_are_refused(tmp_path):  # fault 25
    pair = [ImageRecord("A", "A.png", 3, 5), ImageRecord("a", "a.png", 3, 5)]
    with pytest.raises(UserError, match="differ in upper and lower case only"):
        write_folder(tmp_path, pair, [two(), two()])


def test_lost_pixels_and_empty_cells_are_counted(tmp_path):
    masks = np.zeros((3, 3, 5), bool)
    masks[0, :2], masks[1, 1:] = True, True
    made = Instances.from_masks(masks, (3, 5), scores=[1, 0.5, 1])
    done = write_folder(tmp_path / "t", records("a"), [made])
    assert (done.lost, done.left_out) == (1, 1)
    done = write_folder(tmp_path / "r", records("a"), [made], form="roi")
    assert (done.lost, done.left_out) == (0, 1)


def test_classes_of_several_files_are_brought_together(tmp_path):
    write_rois(tmp_path / "a.zip", two(), ("HEK", "N2a"))
    write_rois(tmp_path / "b.zip", two(), ("N2a", "A172"))
    side, _ = read_folder(tmp_path)
    assert side.classes == ("HEK", "N2a", "A172")
    assert [cells.class_ids.tolist() for cells in side.instances] == [[2, 1], [3, 2]]


def test_what_a_folder_holds_is_told_or_asked(tmp_path):
    write_labels(tmp_path / "l/a.tif", TWO)
    assert format_of(tmp_path / "l") == "labels"
    write_seg(tmp_path / "l/a_seg.npy", None, two(), CLASSES)
    assert format_of(tmp_path / "l/a_seg.npy") == "seg"
    assert "holds labels and seg\nsay which" in refused(read_folder, tmp_path / "l")
    assert read_folder(tmp_path / "l", "seg")[0].classes == CLASSES
    (tmp_path / "e").mkdir()
    assert "holds no label image" in refused(read_folder, tmp_path / "e")
    assert "no file of format roi" in refused(read_folder, tmp_path / "l", "roi")
    with pytest.raises(UserError, match="did you mean 'seg'"):
        read_folder(tmp_path / "l", "segs")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"form": "gif"}, "no format 'gif' .did you mean 'tif'"),
        ({"form": "seg"}, "--images DIR"),
        ({"form": "roi", "suffix": "_x"}, "is for the formats tif and png"),
        ({"suffix": "/../x"}, "the suffix"),
        ({"records": records("a", "A")}, "differ in upper and lower case"),
        (
            {"form": "seg", "images": "pictures", "records": records("x", "y")},
            "of 2 images none .* x: there is no picture",
        ),
    ],
)
def test_folders_that_cannot_be_written(tmp_path, pictures, monkeypatch, change, reason):
    monkeypatch.chdir(tmp_path)
    wanted = {"records": records("a", "b"), "instances": [two(), two()], "classes": CLASSES} | change
    with pytest.raises(UserError, match=reason):
        write_folder(tmp_path / "out", **wanted)
    assert not (tmp_path / "out").exists()


NAMES = [
    "cell 1",
    "a#1",
    "50%",
    "a+b&c;d",
    "Zu\u0308rich",
    "Z\u00fcrich 2",
    "it's",
    'say "x"',
    "-dash",
    "(1) [2]",
    "\u00b5 x" + "y" * 180,
    "plain",
]


@pytest.mark.parametrize("form", ["tif", "png", "seg", "roi"])
def test_awkward_names_pair_both_ways(said, tmp_path, form):
    """Pictures called as people call them, in a COCO file that has the other form of an umlaut, and back."""
    other = lambda name: unicodedata.normalize("NFC" if name == unicodedata.normalize("NFD", name) else "NFD", name)  # noqa: E731
    for name in NAMES:
        write_png(tmp_path / f"pictures/{name}.png", np.zeros((3, 5, 3), np.uint8))
    made = [ImageRecord(other(name), f"{other(name)}.png", 3, 5) for name in NAMES]
    coco = write_coco(tmp_path / "c.json", made, [two()] * len(NAMES), CLASSES)
    pictures = ("--images", tmp_path / "pictures")
    assert said("labels", coco, "-o", tmp_path / "out", "--format", form, *pictures)[0] == 0
    kind = {"tif": "labels", "png": "labels"}.get(form, form)
    code, _, err = said("coco", tmp_path / "out", "-o", tmp_path / "d.json", "--format", kind, *pictures)
    assert (code, err) == (0, "")
    assert sorted(record.path for record in read_coco(tmp_path / "d.json").records) == sorted(f"{n}.png" for n in NAMES)
    if form == "tif":
        for sides in ((coco, tmp_path / "out"), (coco, tmp_path / "d.json"), (tmp_path / "out", tmp_path / "d.json")):
            code, out, err = said("score", *sides, "--convention", "kaggle", "--bootstrap", "0", "--json")
            assert (code, json.loads(out)["images"]) == (0, len(NAMES)), err


def test_two_names_that_fold_to_one(said, tmp_path):
    """The name as it stands goes first; two pictures that a label could mean are named, not guessed between."""
    for name in ("cell 1", "cell_1", "x/a", "y/a", "x/b 1", "x_b/1"):
        write_png(tmp_path / f"pictures/{name}.png", np.zeros((3, 5, 3), np.uint8))
    for name in ("cell 1", "cell_1", "x/a"):
        write_labels(tmp_path / f"in/{name}.tif", TWO)
    side, aside = read_folder(tmp_path / "in", images=tmp_path / "pictures")
    assert ([record.path for record in side.records], aside) == (["cell 1.png", "cell_1.png", "x/a.png"], [])
    for name, told in (("a", "2 pictures called a: x/a.png and y/a.png"), ("x_b_1", "2 pictures called x_b_1")):
        write_labels(tmp_path / f"bad/{name}.tif", TWO)
        with pytest.raises(UserError, match=told):
            read_folder(tmp_path / f"bad/{name}.tif", images=tmp_path / "pictures")
    made = write_coco(
        tmp_path / "c.json", [ImageRecord(n, f"{n}.png", 3, 5) for n in ("cell 1", "cell_1")], [two()] * 2, CLASSES
    )
    code, _, err = said("labels", made, "-o", tmp_path / "out")
    assert code == 2 and "cell 1.png and cell_1.png would both be image 'cell_1'" in err


SMALL = np.zeros((9, 12), np.int32)
SMALL[1, 1] = 1
SMALL[1, 3:5] = 2
SMALL[3:5, 1], SMALL[4, 2] = 3, 3
SMALL[7, 2:8] = 4
SMALL[0:3, 9:12] = 5


@pytest.mark.parametrize("convention", ["plain", "cvat", "fiftyone"])
@pytest.mark.parametrize("form", ["tif", "png", "seg", "roi", "polygons"])
def test_three_trips_change_no_pixel_of_the_smallest_cells(said, tmp_path, form, convention):
    """Cells of one, two and three pixels and a line: no tool's form loses one or moves its number."""
    write_png(tmp_path / "pictures/a.png", np.zeros((9, 12, 3), np.uint8))
    write_labels(tmp_path / "0/a.tif", SMALL)
    coco = tmp_path / "c.json"
    for trip in range(3):
        polygons = ("--polygons",) if form == "polygons" else ()
        assert said("coco", tmp_path / str(trip), "-o", coco, "--images", tmp_path / "pictures",
                    "--convention", convention, *polygons)[0] == 0  # fmt: skip
        out = ("-o", tmp_path / str(trip + 1), "--images", tmp_path / "pictures", "--from", convention)
        assert said("labels", coco, *out, "--format", "tif" if form == "polygons" else form)[0] == 0
    np.testing.assert_array_equal(read_coco(coco, convention=convention).instances[0].paint(), SMALL)


@pytest.mark.parametrize(("value", "pieces", "kept"), [(1, 3, 3), (255, 3, 3), (255, 2, 2), (7, 4, 4)])
def test_a_mask_of_where_cells_are_is_no_label_image(said, tmp_path, value, pieces, kept):
    mask = np.zeros((5, 20), np.uint8)
    mask[1:4, [4 * k + 1 for k in range(pieces)]] = value
    write_labels(tmp_path / "in/a.tif", mask)
    code, _, err = said("coco", tmp_path / "in", "-o", tmp_path / "c.json")
    assert code == 2 and f"holds one id in {pieces} pieces" in err and "--pieces split" in err
    code, _, err = said("score", tmp_path / "in", tmp_path / "in")
    assert code == 2 and "cellkit coco" in err and "--pieces split" in err
    for how, count in (("split", kept), ("keep", 1), ("largest", 1)):
        assert said("coco", tmp_path / "in", "-o", tmp_path / "c.json", "--pieces", how)[0] == 0
        assert len(read_coco(tmp_path / "c.json").instances[0]) == count
    assert "pieces is 'splot'" in said("coco", tmp_path / "in", "-o", tmp_path / "c.json", "--pieces", "splot")[2]
    touching = np.where(np.arange(20) < 9, mask[1, 1], 0)[None].repeat(5, 0).astype(np.uint8)
    write_labels(tmp_path / "in/a.tif", touching)
    assert said("coco", tmp_path / "in", "-o", tmp_path / "c.json")[0] == 0, "one piece is one cell"


# ---- the command line ----------------------------------------------------------------------------------------------
@pytest.fixture
def coco_file(tmp_path):
    return write_coco(tmp_path / "c.json", records("a", "b"), [two(), two(scores=[0.5, 1])], CLASSES)


@pytest.mark.parametrize("form", ["seg", "roi"])
def test_there_and_back_with_classes(said, tmp_path, pictures, coco_file, form):
    code, out, err = said("labels", coco_file, "-o", tmp_path / "out", "--format", form, "--images", pictures)
    what = {"seg": "_seg.npy files", "roi": "ROI zips"}[form]
    assert (code, out, err) == (0, f"{tmp_path / 'out'}: 2 {what}\n", "")
    code, out, err = said("coco", tmp_path / "out", "-o", tmp_path / "again.json", "--images", pictures)
    assert (code, out, err) == (0, f"{tmp_path / 'again.json'}: 2 images, 4 cells\n", "")
    coco = read_coco(tmp_path / "again.json")
    assert coco.classes == CLASSES
    assert coco.instances == read_coco(coco_file).instances


def test_a_bad_file_among_many_is_set_aside(said, tmp_path, pictures):
    write_rois(tmp_path / "in/a.zip", two(), CLASSES)
    (tmp_path / "in/b.zip").write_bytes(b"no zip")
    code, out, err = said("coco", tmp_path / "in", "-o", tmp_path / "c.json")
    assert (code, out) == (3, f"{tmp_path / 'c.json'}: 1 image, 2 cells\n")
    assert err.startswith("skipped: b.zip: ") and "is no zip" in err and err.count("\n") == 1
    assert said("coco", tmp_path / "in", "-o", tmp_path / "c.json", "--allow-skips")[0] == 0
    (tmp_path / "in/a.zip").unlink()
    code, out, err = said("coco", tmp_path / "in", "-o", tmp_path / "d.json")
    assert (code, out, len(err.splitlines())) == (2, "", 2)
    assert not (tmp_path / "d.json").exists()
    write_png(tmp_path / "pictures/b.png", np.zeros((9, 9, 3), np.uint8))
    coco = write_coco(tmp_path / "e.json", records("a", "b"), [two(), two()], CLASSES)
    code, out, err = said("labels", coco, "-o", tmp_path / "s", "--format", "seg", "--images", pictures)
    assert (code, out) == (3, f"{tmp_path / 's'}: 1 _seg.npy file\n")
    assert "skipped: b: " in err and "the image of b_seg.npy is" in err


def test_gui_files_with_their_classes(said, tmp_path):
    np.save(tmp_path / "a_seg.npy", {"masks": TWO, "outlines": TWO, "colors": class_colours(2)[[2, 1]]})
    assert said("coco", tmp_path, "-o", tmp_path / "c.json", "--classes", "HEK,N2a")[0] == 0
    coco = read_coco(tmp_path / "c.json")
    assert (coco.classes, coco.instances[0].class_ids.tolist()) == (("HEK", "N2a"), [2, 1])
    assert said("coco", tmp_path / "a_seg.npy", "-o", tmp_path / "c.json", "--class", "HEK")[0] == 0
    assert read_coco(tmp_path / "c.json").instances[0].class_ids.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("coco", "none", "-o", "x.json"), "no folder at none"),
        (("coco", "in", "-o", "x.json", "--format", "rio"), "no format 'rio' (did you mean 'roi'?)"),
        (("coco", "in", "-o", "x.json", "--convention", "cvta"), "no convention 'cvta' (did you mean 'cvat'?)"),
        (("coco", "in", "-o", "x.json", "--convention", "labelstudio"), "no convention 'labelstudio'"),
        (("coco", "in", "-o", "x.json", "--from", "cvat"), "--from cvat, but in is no COCO file"),
        (("coco", "in", "-o", "x.json", "--class", "HEK"), "but the cells have classes"),
        (("coco", "c.json", "-o", "x.json", "--class", "HEK"), "c.json is a COCO file"),
        (("coco", "in", "-o", "x.json", "--images", "none"), "no folder at none"),
        (("labels", "c.json", "-o", "x", "--format", "gif"), "no format 'gif'"),
        (("labels", "c.json", "-o", "x", "--format", "seg"), "goes with its picture"),
        (("labels", "c.json", "-o", "x", "--convention", "voc"), "no convention 'voc'"),
    ],
)
def test_wrong_usage_is_said_in_two_lines(said, tmp_path, coco_file, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    write_rois(Path("in/a.zip"), two(), CLASSES)
    code, out, err = said(*arguments)
    assert (code, out) == (2, "")
    assert problem in err.splitlines()[0] and len(err.splitlines()) == 2
    assert not Path("x").exists() and not Path("x.json").exists()


def test_tools_coco_files(said, tmp_path):
    """What CVAT exports becomes label images only when it is said whose file it is; and back."""
    rle = {"size": [3, 5], "counts": [0, 2, 1, 2, 10]}
    data = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": dict.fromkeys(("contributor", "date_created", "description", "url", "version", "year"), ""),
        "categories": [{"id": 1, "name": "HEK", "supercategory": ""}],
        "images": [{"id": 0, "width": 5, "height": 3, "file_name": "a.png", "license": 0}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "segmentation": rle, "area": 4.0, "bbox": [0, 0, 2, 2],
                         "iscrowd": 1, "attributes": {"occluded": False}}],
    }  # fmt: skip
    (tmp_path / "cvat.json").write_text(json.dumps(data))
    code, out, err = said("labels", tmp_path / "cvat.json", "-o", tmp_path / "out")
    assert code == 2 and "marks 1 annotation iscrowd" in err and "--from cvat" in err
    code, out, err = said("labels", tmp_path / "cvat.json", "-o", tmp_path / "out", "--convention", "cvat")
    assert (code, out) == (0, f"{tmp_path / 'out'}: 1 label image\n")
    assert "note: read as single objects, as CVAT means them: 1 mask marked iscrowd" in err
    np.testing.assert_array_equal(read_labels(tmp_path / "out/a.tif"), TWO == 1)
    code, out, err = said("coco", tmp_path / "cvat.json", "--from", "cvat", "-o", tmp_path / "plain.json")
    assert code == 0 and read_coco(tmp_path / "plain.json").instances[0].areas_px.tolist() == [4]
    (tmp_path / "crowd.json").write_text(json.dumps(data | {"info": {}, "images": [data["images"][0] | {"id": 2}],
        "annotations": [{**data["annotations"][0], "image_id": 2, "attributes": 0}]}))  # fmt: skip
    code, out, err = said("labels", tmp_path / "crowd.json", "-o", tmp_path / "none")
    assert code == 0 and "note: left out: 1 region marked iscrowd (no single object)" in err


def test_polygons_come_with_a_statement(said, tmp_path):
    ring = np.array([[1, 1, 1, 0, 2], [1, 0, 1, 0, 2], [1, 1, 1, 0, 2]])
    write_labels(tmp_path / "in/a.tif", ring)
    code, _, err = said("coco", tmp_path / "in", "-o", tmp_path / "c.json", "--polygons")
    assert code == 0
    assert err == "note: as polygons, 1 of 2 objects lost holes, 1 changed pixels (as pycocotools draws them)\n"
    assert read_coco(tmp_path / "c.json").instances[0].areas_px.tolist() == [9, 3]


def test_fiftyones_layout(said, tmp_path, coco_file):
    code, _, err = said("coco", coco_file, "-o", tmp_path / "labels.json", "--convention", "fiftyone")
    assert (code, err) == (0, "file names are relative to images/, the data_path of FiftyOne's importer\n")
    data = json.loads((tmp_path / "labels.json").read_text())
    assert [image["file_name"] for image in data["images"]] == ["a.png", "b.png"]
