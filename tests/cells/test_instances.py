"""Instances: runs are what the pixels say, every codec gives back what it was given, and nothing malformed is decoded."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from instance_cases import ORDERS, decoded, stacked
from pycocotools import mask as coco_mask

from cellkit.cells.instances import Instances
from cellkit.cells.runs import ranges

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
        (np.array([[0, -2]]), "found -2"),
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
