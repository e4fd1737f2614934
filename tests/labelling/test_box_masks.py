"""Masks from boxes: one for each, none over another, inside its box; the rule for pixels in several; what the picture adds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.dataset import CellDataset
from cellkit.cells.drawn.pictures import draw
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.labelling.box_masks import BOX_WAYS, LEAST_SHARE, masks_of_boxes, nearest_box, whole_boxes, with_masks

SHAPE = (20, 26)
ONE_BOX = st.tuples(st.integers(0, 25), st.integers(0, 19), st.integers(1, 26), st.integers(1, 20))


def boxes_of(*rows, shape=SHAPE, classes=None):
    return Instances.from_boxes(np.array(rows).reshape(-1, 4), shape, classes)


def disc(shape, y, x, radius):
    rows, columns = np.indices(shape)
    return (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= radius**2


def ious(truth: Instances, made: Instances) -> np.ndarray:
    pairs = [(truth.mask(k), made.mask(k)) for k in range(len(truth))]
    return np.array([(a & b).sum() / (a | b).sum() for a, b in pairs])


@given(st.lists(ONE_BOX, max_size=7, unique=True), st.sampled_from(BOX_WAYS), st.integers(0, 3))
def test_every_box_gets_a_mask_of_its_own_inside_it(rows, way, seed):
    rows = [(x, y, min(w, 26 - x), min(h, 20 - y)) for x, y, w, h in rows]
    rows = list(dict.fromkeys(rows))
    boxes = boxes_of(*rows, classes=[k % 3 for k in range(len(rows))])
    image = np.random.default_rng(seed).integers(0, 255, (*SHAPE, 3), dtype=np.uint8)
    try:
        cells, notes = masks_of_boxes(image, boxes, way)
    except UserError as error:  # e.g. three boxes in two pixels
        assert "share fewer pixels" in str(error) and boxes.areas_px.min() <= len(rows)
        return
    assert len(cells) == len(boxes) and cells.areas_px.min(initial=1) >= 1 and not cells.boxes_only
    assert not cells.overlapping and cells.class_ids.tolist() == boxes.class_ids.tolist()
    assert all((boxes.mask(k) >= cells.mask(k)).all() for k in range(len(boxes)))
    assert masks_of_boxes(image, boxes, way).cells == cells
    assert all(count > 0 for count in notes.values())


def test_a_box_is_filled_and_an_ellipse_touches_its_sides():
    boxes = boxes_of((3, 4, 12, 9), classes=[2])
    image = np.zeros((*SHAPE, 3), np.uint8)
    assert masks_of_boxes(image, boxes, "box").cells.areas_px.tolist() == [108]
    (cells, notes) = masks_of_boxes(image, boxes, "ellipse")
    assert cells.boxes_xywh.tolist() == [[3, 4, 12, 9]] and not notes
    assert cells.areas_px[0] == pytest.approx(np.pi / 4 * 108, rel=0.03)


def test_a_pixel_in_several_boxes_is_of_the_nearest_middle_then_of_the_smaller_box():
    assert nearest_box(boxes_of((0, 0, 6, 1), (4, 0, 6, 1), shape=(1, 10))).tolist() == [[1] * 5 + [2] * 5]
    inside = nearest_box(boxes_of((0, 0, 9, 9), (3, 3, 3, 3), shape=(9, 9)))  # the same middle
    assert (inside == 2).sum() == 9 and (inside == 1).sum() == 72
    beside = nearest_box(
        boxes_of((0, 0, 20, 20), (14, 14, 12, 6))
    )  # a corner of the large box, the ellipse of the small one
    assert beside[17, 16] == 2 and beside[14, 15] == 1, (
        "in one ellipse alone: that one's, though the other middle is nearer"
    )
    turned = nearest_box(boxes_of((3, 3, 3, 3), (0, 0, 9, 9), shape=(9, 9)))
    assert np.array_equal(turned, np.where(inside == 1, 2, 1))


@pytest.mark.parametrize("way", BOX_WAYS)
def test_a_box_drawn_twice_keeps_a_pixel_and_is_counted(way):
    boxes = boxes_of((4, 4, 8, 8), (4, 4, 8, 8), (14, 4, 8, 8))
    cells, notes = masks_of_boxes(np.full((*SHAPE, 3), 90, np.uint8), boxes, way)
    assert cells.areas_px[1] == 1 and cells.areas_px[0] > 40
    assert notes["hidden by other boxes: one pixel"] == 1


def test_boxes_without_pixels_for_all_are_refused():
    with pytest.raises(UserError, match="2 boxes share fewer pixels than they are\nremove boxes"):
        masks_of_boxes(np.zeros((4, 4, 3), np.uint8), boxes_of((1, 1, 1, 1), (1, 1, 1, 1), shape=(4, 4)), "box")
    with pytest.raises(UserError, match="the way 'circle'\nchoose box, ellipse, watershed"):
        masks_of_boxes(np.zeros((4, 4, 3), np.uint8), boxes_of((1, 1, 1, 1), shape=(4, 4)), "circle")
    with pytest.raises(UserError, match="the image is 5 x 4 px, its boxes are of 4 x 4 px"):
        masks_of_boxes(np.zeros((5, 4, 3), np.uint8), boxes_of((1, 1, 1, 1), shape=(4, 4)))


def test_a_cell_cut_off_by_the_border_is_taken_to_go_on():
    disc_cut = disc(SHAPE, 10, 1, 6)
    truth = Instances.from_masks([disc_cut], SHAPE)
    left, top, width, height = whole_boxes(truth)[0]
    assert (left, width, height) == (-5, 12, 12) and top == 4
    made = masks_of_boxes(np.zeros((*SHAPE, 3), np.uint8), truth.as_boxes(), "ellipse").cells
    assert ious(truth, made)[0] > 0.95
    across = whole_boxes(boxes_of((0, 3, 26, 4)))[0]  # cut at both sides: nothing tells how it goes on
    assert across.tolist() == [0, 3, 26, 4]


def test_the_watershed_follows_the_picture_where_it_shows_a_rim():
    shape = (40, 40)
    drop = disc(shape, 20, 20, 12) & ~disc(shape, 8, 20, 9)  # a bean: no ellipse
    truth = Instances.from_masks([drop], shape)
    image = np.where(drop, 60, 220).astype(np.uint8)[..., None].repeat(3, axis=2)
    by_way = {way: masks_of_boxes(image, truth.as_boxes(), way) for way in BOX_WAYS}
    scores = {way: ious(truth, made.cells)[0] for way, made in by_way.items()}
    assert scores["box"] < scores["ellipse"] < scores["watershed"] and scores["watershed"] > 0.9
    assert not by_way["watershed"].notes
    one_colour = image.copy()
    one_colour[..., 1:] = 128  # a stain that one colour shows
    assert ious(truth, masks_of_boxes(one_colour, truth.as_boxes(), "watershed").cells)[0] > 0.9


def test_where_the_picture_shows_nothing_the_watershed_is_the_ellipse_and_says_so():
    boxes = boxes_of((2, 2, 9, 9), (14, 5, 10, 12))
    flat = np.full((*SHAPE, 3), 128, np.uint8)
    made, notes = masks_of_boxes(flat, boxes, "watershed")
    assert made == masks_of_boxes(flat, boxes, "ellipse").cells
    assert notes == {"the picture shows no outline in the box: ellipse": 2} and LEAST_SHARE < 1


def test_what_is_not_annotated_stays_so_and_no_box_gives_no_mask():
    unknown = np.zeros(SHAPE, bool)
    unknown[:, 20:] = True
    boxes = boxes_of((2, 2, 9, 9)).with_unknown(unknown)
    for way in BOX_WAYS:
        image = np.zeros((*SHAPE, 3), np.uint8)
        assert masks_of_boxes(image, boxes, way).cells.unknown_px == unknown.sum()
        assert len(masks_of_boxes(image, boxes_of(), way).cells) == 0


def test_made_masks_teach_and_judge_nothing(tmp_path, drawn):
    boxes = CellDataset(
        drawn.records, [x.as_boxes() for x in drawn.instances], drawn.classes, drawn.root, drawn.ids, ["truth"] * 6
    )
    made, told = with_masks(boxes, "box")
    assert len(made.without_proposed()) == 0 and made.classes == drawn.classes
    assert [len(x) for x in made.instances] == [len(x) for x in drawn.instances]
    assert told.startswith(f"{made.cells} masks made from boxes, the way box")
    assert isinstance(made.records[0], ImageRecord)


def test_on_drawn_nuclei_ellipses_are_better_masks_than_boxes():
    pairs = [draw("nuclei", k, 5) for k in range(2)]
    mean = {}
    for way in BOX_WAYS:
        made = [masks_of_boxes(image, truth.as_boxes(), way).cells for image, truth in pairs]
        mean[way] = np.concatenate([ious(truth, cells) for (_, truth), cells in zip(pairs, made, strict=True)]).mean()
    assert mean["box"] < 0.82 < mean["watershed"] and mean["ellipse"] > 0.88
