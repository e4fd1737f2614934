"""Which labels an image gets: truth, a person's corrections, or proposals; and the class of each labelled cell."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.any import Reading
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels, write_labels
from cellkit.formats.labels import chosen_cells, read_image
from cellkit.labelling.annotate import (
    Labelled,
    check_classes,
    choose_labels,
    diameter_for,
    images_to_propose,
    with_classes,
    with_diameter,
    with_truth_classes,
    write_chosen,
)

SHAPE = (4, 6)


def picture(text):
    """Read a picture of digits, one row a line; anything else is background."""
    return np.array([[int(c) if c.isdigit() else 0 for c in line] for line in text.split()])


TRUE = picture("11.... 11.... ...222 ...222")
PROPOSED = picture("111... 111... .....3 ......")


@pytest.fixture
def images(tmp_path):
    records = [
        ImageRecord("a", "images/a.png", *SHAPE, cell_type="HEK"),
        ImageRecord("b", "images/b.png", *SHAPE, cell_type="mixed"),
    ]
    return CellDataset(records, [Instances.empty(SHAPE)] * 2, (), tmp_path, [1, 2])


@pytest.fixture
def proposals():
    return [Instances.from_labels(PROPOSED)] * 2


@pytest.fixture
def truth(tmp_path, images):
    cells = Instances.from_labels(TRUE, class_ids=[2, 1])
    path = write_coco(tmp_path / "truth.json", images.records, [cells, cells], ["HEK", "N2a"])
    return {"truth": path}


def told(chosen):
    return [(item.image_id, item.made_by) for item in chosen]


# ---- which labels --------------------------------------------------------------------------------------------------
def test_the_truth_is_used_for_every_image(images, proposals, truth):
    chosen = choose_labels(images, proposals, truth, "truth")
    assert told(chosen) == [("a", "truth"), ("b", "truth")]
    for item in chosen:
        np.testing.assert_array_equal(item.labels, TRUE)


def test_proposals_are_used_but_cannot_label_a_mixed_image(images, proposals):
    (item,) = choose_labels(images, proposals, {}, "proposed")
    assert (item.image_id, item.made_by) == ("a", "proposed")
    np.testing.assert_array_equal(item.labels > 0, PROPOSED > 0)


@pytest.mark.parametrize("name", ["b.tif", "b_masks.tif", "b.png", "b_masks.png"])
def test_corrections_go_before_proposals_and_label_a_mixed_image_too(tmp_path, images, proposals, truth, name, caplog):
    folder = tmp_path / "corrected"
    folder.mkdir()
    corrected = picture("...... .9.... ...... ....5.")
    tifffile.imwrite(folder / name, corrected.astype(np.uint16)) if name.endswith("tif") else Image.fromarray(
        corrected.astype(np.uint8)
    ).save(folder / name)
    chosen = choose_labels(images, proposals, truth, str(folder))
    assert told(chosen) == [("a", "proposed"), ("b", "corrected")]
    (said,) = [record.getMessage() for record in caplog.records if "came with labels" in record.getMessage()]
    assert said.startswith("labels: 1 image came with labels that are not used") and "(e.g. a)" in said
    np.testing.assert_array_equal(chosen[1].labels, corrected)


def test_a_label_image_goes_before_one_with_masks_in_its_name(tmp_path, images, proposals):
    write_labels(tmp_path / "c/a_masks.tif", PROPOSED)
    write_labels(tmp_path / "c/a.tif", TRUE)
    np.testing.assert_array_equal(choose_labels(images, proposals, {}, str(tmp_path / "c"))[0].labels, TRUE)


@pytest.mark.parametrize(("min_area_px", "left"), [(0, [1, 2]), (4, [1, 2]), (5, [2]), (6, [2])])
def test_small_cells_are_dropped_told_and_ids_stay(images, proposals, truth, min_area_px, left, capsys):
    item = choose_labels(images, proposals, truth, "truth", min_area_px)[0]
    assert item.labels.dtype == np.int32
    assert np.unique(item.labels[item.labels > 0]).tolist() == left
    told = (
        f"labels: 2 cells of 2 images left out: smaller than label.min_area_px = {min_area_px} px, truth (most in a: 1)"
    )
    assert capsys.readouterr().err.splitlines() == ([told] if len(left) == 1 else [])


@pytest.mark.parametrize("use", ["truth", "proposed"])
def test_a_least_area_that_drops_every_cell_is_to_blame(images, proposals, truth, use):
    with pytest.raises(UserError, match=r"label.min_area_px is 7, and the largest of \d cells has 6 px\nlower"):
        choose_labels(images, proposals, truth, use, 7)


def test_a_correction_may_have_huge_ids(tmp_path, images, proposals):
    corrected = PROPOSED.astype(np.int64)
    corrected[corrected == 3] = 2**31 - 1
    write_labels(tmp_path / "c/a.tif", corrected)
    item = choose_labels(images, proposals, {}, str(tmp_path / "c"), min_area_px=2)[0]
    np.testing.assert_array_equal(item.labels, np.where(PROPOSED == 1, 1, 0))


def test_what_cannot_be_used_is_refused(tmp_path, images, proposals, truth):
    with pytest.raises(UserError, match="the images came without labels\nset label.use"):
        choose_labels(images, proposals, {}, "truth")
    with pytest.raises(UserError, match="label.use is 'corected', no such folder"):
        choose_labels(images, proposals, truth, "corected")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no label image for any of 2 images\nname them <image_id>.tif"):
        choose_labels(images, proposals, truth, str(tmp_path / "empty"))
    write_labels(tmp_path / "c/a.tif", TRUE.T)
    with pytest.raises(UserError, match=r"a.tif is \(6, 4\), images/a.png is \(4, 6\) px\nlabel this very image"):
        choose_labels(images, proposals, truth, str(tmp_path / "c"))
    other = write_coco(tmp_path / "other.json", images.records[:1], [Instances.from_labels(TRUE)], [])
    with pytest.raises(UserError, match="other.json has no labels for 1 of 2 images, e.g. b"):
        choose_labels(images, proposals, {"truth": other}, "truth")
    with pytest.raises(UserError, match="no labels for 1 of 2 images"):
        with_truth_classes(images, other)


def test_what_was_chosen_is_written_with_a_table(tmp_path):
    chosen = [Labelled("a", TRUE.astype(np.int32), "truth"), Labelled("=b", np.zeros(SHAPE, np.int32), "proposed")]
    folder = write_chosen(chosen, tmp_path / "labels", tmp_path / "labels.csv")
    assert sorted(path.name for path in folder.iterdir()) == ["=b.tif", "a.tif", "labels.json"]
    np.testing.assert_array_equal(read_labels(folder / "a.tif"), TRUE)
    assert not read_labels(folder / "=b.tif").any()
    assert (tmp_path / "labels.csv").read_text() == "image_id,made_by,cells\na,truth,2\n'=b,proposed,0\n"


def test_labels_round_trip_into_a_data_set(tmp_path, images, proposals, truth):
    chosen = choose_labels(images, proposals, truth, "truth")
    folder = write_chosen(chosen, tmp_path / "labels", tmp_path / "labels.csv", images)
    back = read_coco(folder / "labels.json", images.root)
    assert back.instances == [Instances.from_labels(TRUE)] * 2


def nested():
    """Return four true cells: a large one, one that lies in it (of another class), the same mask again, a free one."""
    masks = np.zeros((4, *SHAPE), bool)
    masks[0, :, :4], masks[1, 1:3, 1:3], masks[2, 1:3, 1:3], masks[3, 1:, 5] = True, True, True, True
    return Instances.from_masks(masks, SHAPE).with_classes([1, 2, 1, 2])


def test_cells_that_overlap_or_are_nested_travel_whole_with_their_classes(tmp_path, images, proposals):
    truth = write_coco(tmp_path / "truth.json", images.records, [nested()] * 2, ["HEK", "N2a"])
    chosen = choose_labels(images, proposals, {"truth": truth}, "truth", min_area_px=4)
    folder = write_chosen(chosen, tmp_path / "labels", tmp_path / "labels.csv", images)
    back = read_coco(folder / "labels.json", images.root)
    assert back.made_by == ["truth", "truth"]
    assert [x.with_classes(0) for x in back.instances] == [nested()[:3].with_classes(0)] * 2, "the free one is small"
    assert (tmp_path / "labels.csv").read_text().splitlines()[1] == "a,truth,3"
    assert with_truth_classes(back, truth).instances == [nested()[:3]] * 2
    write_labels(folder / "b.tif", TRUE)  # by hand, since: what is painted counts
    assert read_image(folder / "a.tif", Reading()).cells.with_classes(0) == back.instances[0].with_classes(0)
    assert read_image(folder / "b.tif", Reading()).cells == Instances.from_labels(TRUE)


def test_one_file_carries_cells_whole_with_class_and_maker(tmp_path, images, proposals):
    """Of truth whose cells overlap, lie in one another or are there twice, nothing is lost on the way, not even the order."""
    true = Instances.concatenate(
        [nested(), nested()[:1]]
    )  # one mask twice, of one class: covering could not tell which
    path = write_coco(tmp_path / "truth.json", images.records, [true] * 2, ["HEK", "N2a"])
    chosen = choose_labels(images, proposals, {"truth": path}, "truth", classes=("HEK", "N2a"))
    folder = write_chosen(chosen, tmp_path / "labels", tmp_path / "labels.csv", images, ("HEK", "N2a"))
    back = read_coco(folder / "labels.json", images.root)
    assert (back.instances, back.made_by, back.ids) == ([true] * 2, ["truth"] * 2, images.ids)
    assert [replace(r, um_per_px=0) for r in back.records] == [replace(r, um_per_px=0) for r in images.records]
    with pytest.raises(UserError, match="has the classes HEK, N2a, wanted N2a, HEK\nset classes once"):
        choose_labels(images, proposals, {"truth": path}, "truth", classes=("N2a", "HEK"))


def test_proposals_have_no_class_and_keep_their_overlaps(tmp_path, images):
    found = nested().with_scores([0.9, 0.8, 0.7, 0.6])
    chosen = choose_labels(images, [found] * 2, {}, "proposed", classes=("HEK", "N2a"))
    folder = write_chosen(chosen, tmp_path / "labels", tmp_path / "labels.csv", images, ("HEK", "N2a"))
    back = read_coco(folder / "labels.json", images.root)
    assert (back.instances, back.made_by) == ([nested().with_classes(0)], ["proposed"])


def test_a_damaged_list_of_cells_is_refused(tmp_path, images):
    write_chosen([Labelled("a", TRUE.astype(np.int32), "truth")], tmp_path / "labels", tmp_path / "labels.csv")
    for text in ("{", '{"images": [{}], "annotations": [], "categories": []}', "[]"):
        (tmp_path / "labels/labels.json").write_text(text)
        with pytest.raises(UserError, match="labels.json"):
            chosen_cells(tmp_path / "labels")


# ---- classes -------------------------------------------------------------------------------------------------------
def labelled(images, *pictures):
    return CellDataset(images.records, [Instances.from_labels(p) for p in pictures], (), images.root, images.ids)


def test_a_cell_gets_the_class_of_the_true_cell_that_covers_most_of_it(images, truth):
    given = picture("1.3... ...222 ...222 ....44")
    done = with_truth_classes(labelled(images, given, np.zeros(SHAPE, int)), truth["truth"])
    assert done.classes == ("HEK", "N2a")
    assert [x.class_ids.tolist() for x in done.instances] == [[2, 1, 0, 1], []]
    straddling = picture("...... 111111 .11111 ......")  # 2 px of one true cell, 3 of the other
    done = with_truth_classes(labelled(images, straddling, straddling), truth["truth"])
    assert [x.class_ids.tolist() for x in done.instances] == [[1], [1]]


def test_a_cell_on_one_of_unknown_class_stays_unknown(tmp_path, images):
    cells = Instances.from_labels(TRUE, class_ids=[0, 1])
    path = write_coco(tmp_path / "t.json", images.records, [cells, cells], ["HEK"])
    done = with_truth_classes(labelled(images, TRUE, TRUE), path)
    assert [x.class_ids.tolist() for x in done.instances] == [[0, 1], [0, 1]]


@pytest.mark.parametrize(("class_from", "ids"), [("cell_type", [1, 1]), ("truth", [2, 1])])
def test_true_cells_keep_their_class_and_corrected_ones_find_it(images, truth, class_from, ids):
    data = labelled(images, TRUE, TRUE)
    own = [data.instances[0].with_classes([2, 1]), data.instances[1].with_classes([1, 2])]  # not as in truth.json
    data = replace(data, instances=own, made_by=["truth", "truth"], classes=("HEK", "N2a"))
    done = with_classes(data, class_from, ("HEK", "N2a"), truth)
    assert done.classes == ("HEK", "N2a")
    assert [x.class_ids.tolist() for x in done.instances] == [ids, [1, 2]], "of the mixed image always its own"
    corrected = with_classes(replace(data, made_by=["truth", "corrected"]), class_from, ("HEK", "N2a"), truth)
    assert [x.class_ids.tolist() for x in corrected.instances] == [ids, [2, 1]], "of the true cell it covers"
    with pytest.raises(UserError, match="labels.json has the classes HEK, N2a, wanted N2a, HEK"):
        with_classes(data, class_from, ("N2a", "HEK"), truth)


def test_without_any_truth_the_line_of_the_image_is_the_class(images):
    data = replace(labelled(images, TRUE, TRUE), made_by=["proposed", "corrected"])
    for class_from in ("cell_type", "truth"):
        done = with_classes(data, class_from, ("N2a", "HEK"), {})
        assert [x.class_ids.tolist() for x in done.instances] == [[2, 2], [0, 0]]


def test_cells_of_an_image_that_came_without_truth_have_the_class_of_its_line(tmp_path, images):
    only_b = write_coco(
        tmp_path / "b.json", images.records[1:], [Instances.from_labels(TRUE, class_ids=[2, 1])], ["HEK", "N2a"]
    )
    data = replace(labelled(images, TRUE, TRUE), made_by=["proposed", "proposed"])
    for class_from in ("cell_type", "truth"):
        done = with_classes(data, class_from, ("HEK", "N2a"), {"truth": only_b})
        assert [x.class_ids.tolist() for x in done.instances] == [[1, 1], [2, 1]], (
            "a: its line; b: what its cells cover"
        )


# ---- diameter ------------------------------------------------------------------------------------------------------
@pytest.fixture
def able():
    """A backend that can estimate; what it is shown is kept in ``seen``: the brightest blue of each picture."""
    seen = []

    def estimate(checkpoint, pictures, settings):
        seen.append((checkpoint, [int(p.max()) for p in pictures], settings.channels))
        return 21.5

    return SimpleNamespace(estimate_diameter=estimate, seen=seen)


def of_splits(images, *splits):
    """Images of these splits, image k of blue k + 1."""
    records = [replace(images.records[0], image_id=str(k), path=f"{k}.png", split=s) for k, s in enumerate(splits)]
    for k, record in enumerate(records):
        Image.new("RGB", SHAPE[::-1], (0, 0, k + 1)).save(images.root / record.path)
    return CellDataset(records, [Instances.empty(SHAPE)] * len(splits), (), images.root, list(range(len(splits))))


ASKED, GIVEN = (SimpleNamespace(diameter_px=d, channels=(2, 3)) for d in (None, 30.0))


def test_a_diameter_is_estimated_only_where_it_is_missing_and_can_be(images, able):
    three = of_splits(images, *["train"] * 3)
    assert diameter_for(able, "x", GIVEN, three) == 30.0
    assert diameter_for(SimpleNamespace(), "x", ASKED, three) is None
    assert able.seen == []
    assert diameter_for(able, "x", ASKED, three, most=2) == 21.5
    assert able.seen == [("x", [1, 3], (2, 3))]


@pytest.mark.parametrize(
    ("splits", "shown", "told"),
    [
        (["test", "train", "val", "train", "test"], [2, 4], ""),
        (["test", "val"], [2], "there is no training image; the cell diameter is measured on the val images\n"),
        (["test", "test"], [1, 2], "there is no training image; the cell diameter is measured on the test images\n"),
    ],
)
def test_test_images_do_not_say_how_large_a_training_cell_is(images, able, splits, shown, told, capsys):
    diameter_for(able, "x", ASKED, of_splits(images, *splits))
    assert able.seen[0][1] == shown and capsys.readouterr().err == told


def test_no_image_no_diameter(images, able):
    with pytest.raises(UserError, match="no image to measure"):
        diameter_for(able, "x", ASKED, images.subset([]))


def test_a_class_without_a_training_cell_is_refused(images, proposals):
    train = replace(images, instances=[nested()] * 2, classes=("HEK", "N2a"))
    assert check_classes(train)["cells"].tolist() == [4, 4]
    with pytest.raises(UserError, match=r"no training cell: .*'cells': \[8, 0\]"):
        check_classes(replace(train, instances=[nested().with_classes(1)] * 2))


def test_settings_get_the_diameter_and_it_is_said(images, able, capsys):
    from cellkit.config.sections import LabelConfig

    three, config = of_splits(images, *["train"] * 3), LabelConfig()
    found = with_diameter(config, able, Path("x"), three)
    assert found == config.model_copy(update={"diameter_px": found.diameter_px}) and found.diameter_px > 20
    assert with_diameter(config, SimpleNamespace(), Path("x"), three) == config
    assert (
        capsys.readouterr().err == f"starter: cells of about {found.diameter_px:.0f} px\nstarter: cells of any size\n"
    )


def test_proposals_are_made_for_all_or_for_a_preview_without_test_images(images):
    many = of_splits(images, "test", "train", "val", "", "train", "test")
    assert images_to_propose(many, "proposed", 2) is many and images_to_propose(many, "a/folder", 2) is many
    named = lambda most: [r.image_id for r in images_to_propose(many, "truth", most).records]  # noqa: E731
    assert (named(2), named(12)) == (["1", "4"], ["1", "2", "3", "4"])


def test_a_teacher_labels_the_training_images_and_the_truth_the_others(images, proposals, truth, capsys):
    taught = replace(
        images,
        records=[replace(r, split=s, cell_type="HEK") for r, s in zip(images.records, ("train", "val"), strict=True)],
    )
    assert images_to_propose(taught, "truth", 1, teacher=True) is taught
    chosen = choose_labels(taught, proposals, truth, "truth", teacher=True)
    assert told(chosen) == [("a", "proposed"), ("b", "truth")]
    assert (
        "1 training image came with labels, and the teacher's proposals take their place (e.g. a)"
        in capsys.readouterr().err
    )
    np.testing.assert_array_equal(chosen[0].labels > 0, PROPOSED > 0)
    np.testing.assert_array_equal(chosen[1].labels, TRUE)
    assert told(choose_labels(taught, proposals, truth, "truth")) == [("a", "truth"), ("b", "truth")]
