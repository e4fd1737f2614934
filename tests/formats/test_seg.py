"""Cellpose's `_seg.npy`, there and back: no pixel lost, Cellpose itself agrees, and no file does harm."""

import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_png
from exchange_cases import CLASSES, TWO, cells, refused, two
from hypothesis import given, settings

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.formats.label_images import write_labels
from cellkit.formats.labels import write_label_png
from cellkit.formats.plain_pickle import read_plain_npy
from cellkit.formats.seg import class_colours, read_seg, write_seg

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
        seg = read_seg(saved(tmp_path, masks=BAND, **edges))
        np.testing.assert_array_equal(seg.labels, BAND)
        assert (seg.instances.areas_px.tolist(), seg.instances.unknown_px) == ([2, 2], 9)
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
            {"masks": TWO, "cellkit": {"classes": ["a"], "class_ids": np.zeros(3, int), "scores": np.ones(2)}},
            "not one of each for each cell",
        ),
        (
            {"masks": TWO, "cellkit": {"classes": ["a"], "class_ids": np.array([1, 2]), "scores": np.ones(2)}},
            "class 2 of 1",
        ),
    ],
)
def test_seg_files_that_cannot_be_read(tmp_path, fields, reason):
    assert reason in refused(read_seg, saved(tmp_path, **fields))


def three() -> np.ndarray:
    """Return a label image of three cells of 5 x 5 px in a row."""
    labels = np.zeros((7, 21), np.int32)
    for k in range(3):
        labels[1:6, 7 * k + 1 : 7 * k + 6] = k + 1
    return labels


@pytest.mark.parametrize(
    ("change", "class_ids", "kept_outlines"),
    [
        ({2: 0}, [1, 1], True),  # the second is deleted
        ({3: 0}, [1, 2], True),  # the last one
        ({3: 9}, [1, 2, 0], True),  # the last one is another: deleted, and one drawn in its place
        ({2: 0, 3: 2}, [1, 0], True),  # the second is deleted, and the last one has its number now
        ({1: 2, 2: 1}, [0, 0, 1], True),
        ({2: 0}, [0, 0], False),  # nothing tells whether numbers were kept
    ],
)
def test_a_program_that_changed_masks_and_kept_the_noted_classes(tmp_path, change, class_ids, kept_outlines):
    cells = Instances.from_labels(three(), class_ids=[1, 2, 1], scores=[0.5, 0.6, 0.7])
    fields = read_plain_npy(write_seg(tmp_path / "a_seg.npy", None, cells, CLASSES))
    table = np.array([change.get(k, k) for k in range(4)])
    fields["masks"] = table[fields["masks"]].astype(np.uint16)
    if not kept_outlines:
        fields["outlines"] = table[fields["outlines"]].astype(np.uint16)
    seg = read_seg(saved(tmp_path, **fields))
    np.testing.assert_array_equal(seg.labels, fields["masks"])
    assert seg.instances.class_ids.tolist() == class_ids
    new = class_ids.count(0)
    assert [note.partition(" changed")[0] for note in seg.notes] == [f"a_seg.npy: {new} of {len(class_ids)} cells"] * (
        new > 0
    )
    unchanged = read_seg(write_seg(tmp_path / "b_seg.npy", None, cells, CLASSES))
    assert unchanged.instances.scores.tolist() == [0.5, 0.6, 0.7] and not unchanged.notes


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
