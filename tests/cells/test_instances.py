"""Instances: runs are what the pixels say, every codec gives back what it was given, and nothing malformed is decoded."""

import csv
import random
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from cellkit.cells.instances import Instances
from cellkit.cells.runs import ranges
from cellkit.errors import UserError

ORDERS = ("row-major", "column-major")
SIDES = st.integers(1, 9)


@st.composite
def label_images(draw):
    shape = draw(st.tuples(SIDES, SIDES))
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.int32, np.uint32, np.int64]))
    return draw(hnp.arrays(dtype, shape, elements=st.integers(0, draw(st.sampled_from([1, 3, 9])))))


@st.composite
def mask_stacks(draw):
    """0 to 5 masks of one shape, (N, H, W) bool: they overlap, and some have no pixel."""
    shape = (draw(st.integers(0, 5)), draw(SIDES), draw(SIDES))
    return draw(hnp.arrays(bool, shape))


def stacked(masks, **kwargs):
    return Instances.from_masks(masks, masks.shape[1:], **kwargs)


def masks_of(cells):
    return np.array([cells.mask(k) for k in range(len(cells))], bool).reshape(-1, *cells.shape)


def naive_runs(mask):
    """Find the runs of a flattened mask pixel by pixel."""
    runs, before = [], False
    for position, inside in enumerate(mask.ravel().tolist()):
        if inside and before:
            runs[-1][1] += 1
        elif inside:
            runs.append([position, 1])
        before = inside
    return runs


def decoded(rle):
    with warnings.catch_warnings():  # pycocotools 2.0.11 on NumPy 2: __array__ without `copy`
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco_mask.decode(rle)


def picture(text):
    """Read a picture of digits, one row a line; anything else is background."""
    return np.array([[int(c) if c.isdigit() else 0 for c in line] for line in text.split()])


CASES = {
    "no cell": picture("... ..."),
    "image-sized": np.ones((5, 7), int),
    "one pixel": picture("... .1. ..."),
    "last pixel": picture("... ..1"),
    "one pixel wide": picture("1..2 1..2 1..2"),
    "one pixel high": picture("1111 .... 2222"),
    "one row": np.array([[0, 3, 3, 0, 8]]),
    "one column": np.array([[0], [3], [3], [0], [8]]),
    "ring": picture("1111 1..1 1111"),
    "cell in a ring": picture("11111 1...1 1.2.1 1...1 11111"),
    "touching": picture("1122 1122 3344"),
    "in pieces": picture("1.1 ... 1.2"),
    "wraps rows": picture("..11 11.. ..22 2222"),
    "chequered": np.indices((6, 5)).sum(0) % 2,
    "gaps in ids": picture("..9 .4. 9.."),
    "huge ids": np.array([[0, 2**40], [2**40, 70_000]]),
}


# ---- golden --------------------------------------------------------------------------------------------------------
def test_the_worked_mask_in_every_codec():
    mask = np.zeros((3, 4), int)
    mask[0, 1] = mask[1, 1] = 1
    cells = Instances.from_labels(mask)
    assert cells.to_coco_rle(compressed=False) == [{"size": [3, 4], "counts": [3, 2, 7]}]
    assert cells.to_coco_rle() == [{"size": [3, 4], "counts": "327"}]
    assert cells.to_kaggle_rle("row-major") == ["2 1 6 1"]
    assert cells.to_kaggle_rle("column-major") == ["4 2"]
    assert (cells.starts.tolist(), cells.lengths.tolist(), cells.offsets.tolist()) == ([1, 5], [1, 1], [0, 2])


def test_objects_come_in_ascending_order_of_label_with_default_class_and_score():
    cells = Instances.from_labels(picture("9.. 944 ..4"))
    assert len(cells) == 2
    assert cells.areas_px.tolist() == [3, 2]
    assert cells.class_ids.tolist() == [0, 0]
    assert cells.scores.tolist() == [1, 1]
    assert repr(cells) == "Instances(2 objects in 3 x 3 px)"


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("... ... ..1", [[2, 2, 1, 1]]),
        ("..11 11..", [[0, 0, 4, 2]]),
        ("1.. 1.. 1..", [[0, 0, 1, 3]]),
        ("111 111", [[0, 0, 3, 2]]),
        ("..... .111. .1.1. .111.", [[1, 1, 3, 3]]),
        ("1...2 ..... 1....", [[0, 0, 1, 3], [4, 0, 1, 1]]),
    ],
)
def test_boxes(text, boxes):
    assert Instances.from_labels(picture(text)).boxes_xywh.tolist() == boxes


def test_a_one_pixel_cell_keeps_its_box_where_torchvision_makes_it_empty():
    import torch
    from torchvision.ops import masks_to_boxes

    assert masks_to_boxes(torch.ones(1, 1, 1)).tolist() == [[0, 0, 0, 0]]  # upstream: width 0
    assert Instances.from_labels(np.ones((1, 1), int)).boxes_xywh.tolist() == [[0, 0, 1, 1]]


def test_an_object_without_pixel_stays_an_object():
    cells = stacked(np.array([[[0, 0]], [[0, 1]], [[0, 0]]], bool))
    assert len(cells) == 3
    assert cells.areas_px.tolist() == [0, 1, 0]
    assert cells.boxes_xywh.tolist() == [[0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]]
    assert [rle["counts"] for rle in cells.to_coco_rle(compressed=False)] == [[2], [1, 1], [2]]
    assert cells.to_kaggle_rle("row-major") == cells.to_kaggle_rle("column-major") == ["", "2 1", ""]
    assert cells.paint().tolist() == [[0, 2]]
    assert Instances.from_coco_rle(cells.to_coco_rle(), (1, 2)) == cells
    assert Instances.from_kaggle_rle(cells.to_kaggle_rle("row-major"), (1, 2), "row-major") == cells


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (0, 0), (0, 5), (5, 0)])
def test_no_object(shape):
    cells = Instances.empty(shape)
    assert len(cells) == 0
    assert cells.paint().shape == shape
    assert cells.boxes_xywh.shape == (0, 4)
    assert cells.areas_px.shape == (0,)
    assert cells.to_coco_rle() == cells.to_coco_rle(compressed=False) == []
    assert not cells.overlapping
    assert cells == Instances.from_labels(np.zeros(shape, int)) == Instances.from_coco_rle([], shape)
    assert cells == Instances.concatenate([cells, cells]) == cells[np.zeros(0, bool)]
    for order in ORDERS:
        assert cells.to_kaggle_rle(order) == []
        assert Instances.from_kaggle_rle([], shape, order) == cells


def test_selecting():
    cells = Instances.from_labels(picture("1122 3344"), class_ids=[1, 2, 1, 2], scores=[0.1, 0.2, 0.3, 0.4])
    for index in (2, -2, slice(2, 3), [2], np.array([2]), np.array([False, False, True, False])):
        chosen = cells[index]
        assert (len(chosen), chosen.class_ids.tolist(), chosen.scores.tolist()) == (1, [1], [0.3])
        assert chosen.boxes_xywh.tolist() == [[0, 1, 2, 1]]
    assert cells[[3, 0, 0]].scores.tolist() == [0.4, 0.1, 0.1]
    assert len(cells[[]]) == 0
    assert [one.class_ids.item() for one in cells] == [1, 2, 1, 2]
    with pytest.raises(IndexError):
        cells[4]


def test_mask_counts_from_the_end_too():
    cells = Instances.from_labels(picture("12"))
    assert cells.mask(-1).tolist() == cells.mask(1).tolist() == [[False, True]]
    for index in (2, -3):
        with pytest.raises(IndexError):
            cells.mask(index)


def test_with_classes_and_scores_leave_the_original_alone():
    cells = Instances.from_labels(picture("12"))
    assert cells.with_classes(3).class_ids.tolist() == [3, 3]
    assert cells.with_classes([1, 2]).with_scores(0.5).scores.tolist() == [0.5, 0.5]
    assert cells.class_ids.tolist() == [0, 0]
    with pytest.raises(ValueError, match="broadcast"):
        cells.with_classes([1, 2, 3])


def test_small_masks_are_placed_and_clipped():
    square = np.ones((2, 2), bool)
    corners = [(0, 0), (-1, -1), (2, 1), (3, 2), (4, 0), (-2, 0), (0, 9)]
    cells = Instances.from_boxed_masks([square] * len(corners), corners, (3, 4))
    assert cells.areas_px.tolist() == [4, 1, 4, 1, 0, 0, 0]
    assert cells.boxes_xywh.tolist()[1:4] == [[0, 0, 1, 1], [2, 1, 2, 2], [3, 2, 1, 1]]
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    np.testing.assert_array_equal(Instances.from_boxed_masks([ring], [(0, 0)], (3, 3)).mask(0), ring)
    assert Instances.from_boxed_masks([ring], [(0, 0)], (3, 3)) == stacked(ring[None])


@settings(max_examples=60, deadline=None)
@given(st.data(), SIDES, SIDES)
def test_placing_small_masks_is_pasting_them(data, height, width):
    masks = data.draw(st.lists(hnp.arrays(bool, st.tuples(st.integers(0, 4), st.integers(0, 4))), max_size=3))
    corners = [data.draw(st.tuples(st.integers(-5, width + 1), st.integers(-5, height + 1))) for _ in masks]
    wanted = np.zeros((len(masks), height + 20, width + 20), bool)
    for page, mask, (x, y) in zip(wanted, masks, corners, strict=True):
        page[10 + y : 10 + y + mask.shape[0], 10 + x : 10 + x + mask.shape[1]] = mask
    cells = Instances.from_boxed_masks(masks, corners, (height, width))
    assert cells == stacked(wanted[:, 10 : 10 + height, 10 : 10 + width])


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros((2, 2)), "float64"),
        (np.zeros((2, 2, 3), int), r"\(2, 2, 3\)"),
        (np.zeros(4, int), r"\(4,\)"),
        (np.array([[0, -1]]), "found -1"),
    ],
)
def test_what_is_no_label_image_is_refused(labels, reason):
    with pytest.raises(ValueError, match=reason):
        Instances.from_labels(labels)


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 objects, but 1 class ids and 2 scores"):
        Instances.from_labels(picture("12"), class_ids=[1])
    with pytest.raises(ValueError, match=r"mask of shape \(1, 2\) in an image of shape \(2, 2\)"):
        Instances.from_masks([np.ones((1, 2), bool)], (2, 2))
    with pytest.raises(ValueError, match="one image has one shape"):
        Instances.concatenate([Instances.empty((1, 2)), Instances.empty((2, 1))])
    for call in (lambda x: x.to_kaggle_rle("columns"), lambda x: Instances.from_kaggle_rle([], (1, 1), "")):
        with pytest.raises(ValueError, match="order is 'row-major' .Sartorius. or 'column-major' .DSB2018."):
            call(Instances.empty((1, 1)))


def test_masks_of_numbers_are_masks():
    assert stacked(np.array([[[0, 1, 2]]])) == stacked(np.array([[[0, 1, 1]]], bool))


# ---- paint ---------------------------------------------------------------------------------------------------------
def test_the_higher_score_wins_a_pixel_and_the_earlier_object_a_tie():
    masks = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]], [[0, 0, 1, 1]]], bool)
    assert stacked(masks).paint().tolist() == [[1, 1, 2, 3]]
    assert stacked(masks, scores=[0.1, 0.2, 0.3]).paint().tolist() == [[1, 2, 3, 3]]
    assert stacked(masks, scores=[0.3, 0.1, 0.3]).paint().tolist() == [[1, 1, 3, 3]]
    assert stacked(masks, scores=[0.3, 0.1, 0.3]).paint([7, 8, 9]).tolist() == [[7, 7, 9, 9]]


@settings(max_examples=150, deadline=None)
@given(mask_stacks(), st.data())
def test_paint_is_what_painting_one_by_one_gives(masks, data):
    scores = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(masks), max_size=len(masks)))
    wanted, best = np.zeros(masks.shape[1:], int), np.full(masks.shape[1:], -1.0)
    for number, (mask, score) in enumerate(zip(masks, scores, strict=True), 1):
        won = mask & (score > best)
        wanted[won], best[won] = number, score
    painted = stacked(masks, scores=scores).paint()
    assert painted.dtype == np.int32
    np.testing.assert_array_equal(painted, wanted)


def test_long_and_short_runs_over_each_other():
    shape = (700, 300)  # several blocks of the painter, and runs longer than one
    labels = np.zeros(shape, int)
    labels[::2, ::3] = np.arange(350 * 100).reshape(350, 100) + 1
    small = Instances.from_labels(labels)
    whole = stacked(np.ones((1, *shape), bool))
    below = Instances.concatenate([whole.with_scores(0.5), small])
    np.testing.assert_array_equal(below.paint(), labels + 1)
    above = Instances.concatenate([small.with_scores(0.5), whole])
    assert np.unique(above.paint()).tolist() == [len(small) + 1]


# ---- invariants ----------------------------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(label_images())
def test_labels_become_their_runs_and_come_back(labels):
    cells = Instances.from_labels(labels)
    ids = np.unique(labels[labels > 0])
    assert len(cells) == len(ids)
    for k, label in enumerate(ids):
        own = slice(cells.offsets[k], cells.offsets[k + 1])
        runs = np.stack([cells.starts[own], cells.lengths[own]], axis=1)
        assert runs.tolist() == naive_runs(labels == label)
        np.testing.assert_array_equal(cells.mask(k), labels == label)
    np.testing.assert_array_equal(cells.paint(ids.astype(np.int64)), labels)
    assert not cells.overlapping
    assert cells == Instances.from_labels(np.asfortranarray(labels))
    assert cells == stacked(np.array([labels == label for label in ids], bool).reshape(-1, *labels.shape))


@settings(max_examples=150, deadline=None)
@given(mask_stacks())
def test_masks_are_kept_whether_they_overlap_or_not(masks):
    cells = stacked(masks)
    np.testing.assert_array_equal(masks_of(cells), masks)
    np.testing.assert_array_equal(cells.areas_px, masks.sum((1, 2)))
    assert cells.overlapping == bool((masks.sum(0) > 1).any())
    runs = [naive_runs(mask.T) for mask in masks]
    starts, lengths, offsets = cells.column_major()
    assert np.stack([starts, lengths], axis=1).tolist() == [run for own in runs for run in own]
    assert np.diff(offsets).tolist() == [len(own) for own in runs]


def assert_round_trips(cells):
    about = {"class_ids": cells.class_ids, "scores": cells.scores}
    for compressed in (True, False):
        assert Instances.from_coco_rle(cells.to_coco_rle(compressed), cells.shape, **about) == cells
    for order in ORDERS:
        assert Instances.from_kaggle_rle(cells.to_kaggle_rle(order), cells.shape, order, **about) == cells


@settings(max_examples=150, deadline=None)
@given(mask_stacks())
def test_every_codec_gives_back_what_it_was_given(masks):
    assert_round_trips(stacked(masks, class_ids=np.arange(len(masks)), scores=np.linspace(0, 1, len(masks))))


@pytest.mark.parametrize("labels", CASES.values(), ids=CASES)
def test_codecs_on_the_shapes_that_bite(labels):
    cells = Instances.from_labels(labels)
    assert_round_trips(cells)
    twice = Instances.concatenate([cells, cells])  # overlapping truth
    assert twice.overlapping == bool(labels.any())
    assert_round_trips(twice)
    back = Instances.from_kaggle_rle(cells.to_kaggle_rle("row-major"), labels.shape, "row-major")
    np.testing.assert_array_equal(back.paint() > 0, labels > 0)


@pytest.mark.parametrize("count", [65_535, 65_536, 70_000])
def test_more_cells_than_16_bits_hold(count):
    labels = np.zeros((300, 300), np.uint32)
    labels.ravel()[:count] = np.random.default_rng(0).permutation(count) + 1
    cells = Instances.from_labels(labels)
    assert len(cells) == count
    np.testing.assert_array_equal(cells.paint(), labels)
    assert Instances.from_coco_rle(cells.to_coco_rle(), cells.shape) == cells
    texts = cells.to_kaggle_rle("column-major")
    assert sorted(texts) == sorted(f"{x * 300 + y + 1} 1" for y, x in np.argwhere(labels).tolist())


@settings(max_examples=60, deadline=None)
@given(mask_stacks(), st.data())
def test_selecting_and_joining_are_inverse(masks, data):
    cells = stacked(masks, class_ids=np.arange(len(masks)))
    cut = data.draw(st.integers(0, len(masks)))
    assert Instances.concatenate([cells[:cut], cells[cut:]]) == cells
    kept = data.draw(hnp.arrays(bool, len(masks)))
    np.testing.assert_array_equal(masks_of(cells[kept]), masks[kept])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=6))
def test_ranges_join_python_ranges(pairs):
    starts, lengths = (np.array([pair[k] for pair in pairs], np.int64) for k in (0, 1))
    assert ranges(starts, lengths).tolist() == [p for start, length in pairs for p in range(start, start + length)]


# ---- the same as pycocotools ---------------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(mask_stacks())
def test_rle_areas_and_boxes_equal_those_of_pycocotools(masks):
    cells = stacked(masks)
    theirs = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    ours = cells.to_coco_rle()
    assert [rle["counts"] for rle in ours] == [rle["counts"].decode() for rle in theirs]
    assert [rle["size"] for rle in ours] == [rle["size"] for rle in theirs]
    assert Instances.from_coco_rle(theirs, masks.shape[1:]) == cells  # they write bytes
    assert cells.areas_px.tolist() == [int(coco_mask.area(rle)) for rle in theirs]
    some = cells.areas_px > 0
    boxes = [coco_mask.toBbox(rle).tolist() for rle in theirs]
    assert cells.boxes_xywh[some].tolist() == [box for box, kept in zip(boxes, some, strict=True) if kept]
    plain = cells.to_coco_rle(compressed=False)
    packed = [coco_mask.frPyObjects(rle, *masks.shape[1:]) for rle in plain]
    assert [rle["counts"] for rle in packed] == [rle["counts"] for rle in theirs]


def test_long_runs_need_several_letters_as_in_pycocotools():
    rng = np.random.default_rng(1)
    for shape, share in (((200, 900), 0.001), ((700, 300), 0.2), ((2, 3000), 0.999), ((2000, 2000), 1e-6)):
        mask = np.asfortranarray(rng.random(shape) < share)
        theirs = coco_mask.encode(mask.view(np.uint8))["counts"].decode()
        assert stacked(mask[None]).to_coco_rle() == [{"size": list(shape), "counts": theirs}]


def test_pycocotools_paints_ours_and_a_hole_survives_that_a_polygon_would_fill():
    ring = CASES["ring"]
    (rle,) = Instances.from_labels(ring).to_coco_rle()
    np.testing.assert_array_equal(decoded(rle), ring)
    outline = coco_mask.frPyObjects([[0, 0, 4, 0, 4, 3, 0, 3]], 3, 4)
    assert decoded(outline).sum() == ring.size  # upstream: a polygon has no hole


# ---- malformed -----------------------------------------------------------------------------------------------------
def rle_of(counts, size=(3, 4)):
    return {"size": list(size), "counts": counts}


@pytest.mark.parametrize(
    ("rle", "reason"),
    [
        (rle_of([3, 2]), "covers 5 px, its image has 12"),  # pycocotools would show uninitialised memory
        (rle_of("32"), "covers 5 px, its image has 12"),
        (rle_of([3, 2, 8]), "covers 13 px"),
        (rle_of([3, -2, 11]), "counts are >= 0"),
        (rle_of([3, -1, 2, 8]), "counts are >= 0"),
        (rle_of([]), "covers 0 px"),
        (rle_of([2**70]), "its image has 12"),
        (rle_of([2**63, 2**63, 12]), "its image has 12"),
        (rle_of([-(2**70), 2**70, 12]), "its image has 12"),
        (rle_of(""), "no run lengths"),
        (rle_of("32 "), "no run lengths"),
        (rle_of("\x7f27"), "no run lengths"),
        (rle_of("é27"), "no run lengths"),
        (rle_of("\ud80027"), "no run lengths"),
        (rle_of("\u271327"), "no run lengths"),
        (rle_of("32W"), "no run lengths"),  # the last letter announces another
        (rle_of("PPPPPPPPPPP0"), "no run lengths"),
        (rle_of([3.0, 2, 7]), "no run lengths"),
        (rle_of(["3", "2", "7"]), "no run lengths"),
        (rle_of([True, 2, 9]), "no run lengths"),
        (rle_of(None), "no run lengths"),
        (rle_of(12), "no run lengths"),
        (rle_of("327", (4, 3)), r"has size \[4, 3\], its image is \[3, 4\]"),
        (rle_of("327", (3.0, 4)), "has size"),
        (rle_of("327", (3, 4, 1)), "has size"),
        ({"size": None, "counts": "327"}, "has size"),
        ({"counts": "327"}, "lacks 'size' or 'counts'"),
        ({"size": [3, 4]}, "lacks 'size' or 'counts'"),
        ("327", "is no COCO RLE"),
        (None, "is no COCO RLE"),
    ],
)
def test_a_coco_rle_is_checked_before_it_is_decoded(rle, reason):
    good = rle_of("327")
    with pytest.raises(UserError, match=f"RLE 3 .*{reason}" if reason != "counts are >= 0" else reason):
        Instances.from_coco_rle([good, rle_of([3, 2, 7]), rle, good], (3, 4))


def test_coco_counts_of_zero_length_and_longer_texts_than_needed_are_read():
    cells = Instances.from_coco_rle([rle_of([0, 0, 3, 1, 0, 1, 7, 0]), rle_of("S027")], (3, 4))
    assert cells[0] == cells[1] == Instances.from_coco_rle([rle_of("327")], (3, 4))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2", "has 1 numbers"),
        ("2 1 6", "has 3 numbers"),
        ("0 1", "leaves its image of 12 px"),
        ("2 0", "leaves its image"),
        ("12 2", "leaves its image"),
        ("13 1", "leaves its image"),
        ("1 99999999999", "leaves its image"),
        ("6 1 2 1", "has runs out of order or overlapping"),
        ("2 2 3 1", "has runs out of order or overlapping"),
        ("2 1 2 1", "has runs out of order or overlapping"),
        ("-2 1", "holds '-2'"),
        ("2.0 1", "holds '2.0'"),
        ("a b", "holds 'a'"),
        ("2,1", "holds '2,1'"),
        ("٢ ١", "holds"),
        ("2 1_0", "holds '1_0'"),
        ("1 99999999999999999999", "holds"),
        (float("nan"), "holds 'nan'"),
        (None, "holds 'None'"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_a_kaggle_text_is_checked_before_it_is_decoded(text, reason, order):
    with pytest.raises(UserError, match=f"RLE 2 {reason}"):
        Instances.from_kaggle_rle(["2 1", text], (3, 4), order)


def test_kaggle_runs_that_touch_are_joined():
    for order in ORDERS:
        assert Instances.from_kaggle_rle(["2 1 3 1 4 2"], (3, 4), order).to_kaggle_rle(order) == ["2 4"]


def mangled(text, rng, letters):
    """Change a text at one to three places."""
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text) + 1)
        cut = rng.choice([0, 1, 1, rng.randrange(len(text) + 1)])
        text = text[:place] + rng.choice(["", *letters]) + text[place + cut :]
    return text


def test_mangled_coco_texts_are_read_right_or_refused():
    rng, shape, read = random.Random(0), (13, 11), 0
    labels = np.random.default_rng(0).integers(0, 4, shape) * (np.indices(shape).sum(0) % 5 > 0)
    texts = [rle["counts"] for rle in Instances.from_labels(labels).to_coco_rle()] + ["]4", "0]4", "g07T1"]
    for _ in range(2000):
        rle = rle_of(mangled(rng.choice(texts), rng, [chr(48 + k) for k in range(64)] + [" ", "\x00", "~", "ü"]), shape)
        try:
            cells = Instances.from_coco_rle([rle], shape)
        except UserError:
            continue
        read += 1
        np.testing.assert_array_equal(cells.mask(0), decoded(rle))  # its counts sum to H * W: safe upstream
    assert 10 < read < 1000


def test_mangled_coco_counts_are_read_right_or_refused():
    rng, shape, read = random.Random(1), (6, 7), 0
    for _ in range(2000):
        cuts = sorted(rng.sample(range(43), 5))
        counts = [b - a for a, b in zip([0, *cuts], [*cuts, 42], strict=True)]
        place = rng.randrange(6)
        counts[place] = rng.choice([counts[place], counts[place] + 1, -1, 0, 2**62, 2**64, 1.0, None, "1", [1], True])
        try:
            cells = Instances.from_coco_rle([rle_of(counts, shape)], shape)
        except UserError:
            continue
        read += 1
        assert sum(counts) == 42
        wanted = np.repeat(np.arange(6) % 2, counts).reshape(7, 6).T
        np.testing.assert_array_equal(cells.mask(0), wanted)
    assert 100 < read < 1000


@pytest.mark.parametrize("order", ORDERS)
def test_mangled_kaggle_texts_are_read_right_or_refused(order):
    rng, shape, read = random.Random(2), (9, 8), 0
    labels = np.random.default_rng(0).integers(0, 3, shape)
    texts = Instances.from_labels(labels).to_kaggle_rle(order)
    for _ in range(2000):
        text = mangled(rng.choice(texts), rng, [*"0123456789", " ", "  ", "-", ".", "e", "\t", "x", "²", "999999"])
        try:
            cells = Instances.from_kaggle_rle([text], shape, order)
        except UserError:
            continue
        read += 1
        numbers = list(map(int, text.split()))
        wanted = np.zeros(72, int)
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            wanted[start - 1 : start - 1 + length] += 1
        wanted = wanted.reshape(shape) if order == "row-major" else wanted.reshape(8, 9).T
        np.testing.assert_array_equal(cells.mask(0), wanted)
    assert 50 < read < 1500


# ---- large ---------------------------------------------------------------------------------------------------------
def peak_bytes(job):
    tracemalloc.start()
    job()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_conversion_grows_with_the_runs_not_with_the_pixels():
    side = 30_000  # 900 million px: a list of them would be 7 GB
    whole = Instances.from_runs((side, side), [0], [side * side], [0, 1])
    rle = rle_of([0, side * side], (side, side))

    def convert():
        assert whole.to_coco_rle(compressed=False) == [rle]
        assert Instances.from_coco_rle([rle], (side, side)) == whole
        assert whole.to_kaggle_rle("column-major") == [f"1 {side * side}"]
        assert Instances.from_kaggle_rle([f"1 {side * side}"], (side, side), "column-major") == whole

    assert peak_bytes(convert) < 20 * 2**20


def test_memory_stays_within_three_label_images():
    labels = np.kron(np.arange(1, 401, dtype=np.int32).reshape(20, 20), np.pad(np.ones((45, 45), np.int32), 3))
    cells, whole = Instances.from_labels(labels), stacked(np.ones((1, *labels.shape), bool))
    jobs = {
        "from_labels": lambda: Instances.from_labels(labels),
        "to_coco_rle": lambda: cells.to_coco_rle(),
        "row-major": lambda: cells.to_kaggle_rle("row-major"),
        "column-major": lambda: cells.to_kaggle_rle("column-major"),
        "paint": lambda: cells.paint(),
        "paint, overlapping": lambda: Instances.concatenate([cells, cells]).paint(),
        "paint, one below all": lambda: Instances.concatenate([cells, whole]).paint(),
    }
    peaks = {name: peak_bytes(job) / labels.nbytes for name, job in jobs.items()}
    assert max(peaks.values()) < 3, peaks


# ---- real ----------------------------------------------------------------------------------------------------------
@pytest.mark.realdata
def test_real_annotations_survive_every_codec(data_folder):
    with open(data_folder / "sartorius" / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    images = {}
    for row in rows:
        shape = int(row["height"]), int(row["width"])
        images.setdefault((row["id"], shape), []).append(row["annotation"])
    for (_, shape), texts in images.items():
        cells = Instances.from_kaggle_rle(texts, shape, "row-major")
        assert cells.to_kaggle_rle("row-major") == [" ".join(text.split()) for text in texts]
        assert Instances.from_coco_rle(cells.to_coco_rle(), shape) == cells
    assert sum(map(len, images.values())) == len(rows) > 7000
