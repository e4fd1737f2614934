"""A folder of corrected labels as the label tools left it: what is used for which image, and what is named instead."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import write_png
from PIL import Image

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.any import write_folder
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.geojson import write_geojson
from cellkit.formats.label_images import write_labels
from cellkit.formats.labels import write_label_png
from cellkit.formats.roi import write_rois
from cellkit.formats.seg import write_seg
from cellkit.labelling.annotate import Labelled, choose_labels, with_classes, write_chosen
from cellkit.labelling.corrections import read_corrections, same_cells
from cellkit.labelling.rounds import write_proposal

SHAPE = (6, 8)
NAMES = ("HEK_a", "HEK_b", "N2a_a")
SOURCES = ("HEK/a.ome.tif z max", "HEK/b 1.czi scene 1", "N2a/a.tif")


def cells(shift: int) -> np.ndarray:
    """Return a label image of two cells."""
    labels = np.zeros(SHAPE, np.int32)
    labels[:3, shift : shift + 3], labels[4:, 1:4] = 1, 2
    return labels


TRUE, PROPOSED = cells(2), cells(0)


@pytest.fixture
def images(tmp_path):
    records = [
        ImageRecord(
            n,
            f"images/{n}.png",
            *SHAPE,
            cell_type=n[:3],
            split="train",
            source=s,
            file=re.split(" (?=t |scene )", s)[0],
        )
        for n, s in zip(NAMES, SOURCES, strict=True)
    ]
    return CellDataset(records, [Instances.empty(SHAPE)] * 3, (), tmp_path / "run", [1, 2, 3])


@pytest.fixture
def proposals():
    return [Instances.from_labels(PROPOSED)] * 3


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "c").mkdir()
    return tmp_path / "c"


def saved_by_gui(path, labels):
    """Write a _seg.npy file as Cellpose saves it: without the key that cellkit adds."""
    write_seg(path, None, labels)
    fields = np.load(path, allow_pickle=True).item()
    del fields["cellkit"]
    np.save(path, fields, allow_pickle=True)


def by_cellpose(folder, stem):
    saved_by_gui(folder / f"{stem}_seg.npy", TRUE)


def by_fiji(folder, stem):
    write_rois(folder / f"{stem}_rois.zip", Instances.from_labels(TRUE))


WRITERS = {
    "_seg.npy": by_cellpose,
    "_rois.zip": by_fiji,
    ".zip": lambda f, s: write_rois(f / f"{s}.zip", Instances.from_labels(TRUE)),
    "_ROIS.ZIP": lambda f, s: write_rois(f / f"{s}_ROIS.ZIP", Instances.from_labels(TRUE)),
    ".tiff": lambda f, s: write_labels(f / f"{s}.tiff", TRUE),
    ".TIF": lambda f, s: write_labels(f / f"{s}.TIF", TRUE),
    ".ome.tif": lambda f, s: write_labels(f / f"{s}.ome.tif", TRUE),
    ".png": lambda f, s: write_label_png(f / f"{s}.png", TRUE),
    ".PNG": lambda f, s: write_label_png(f / f"{s}.PNG", TRUE),
    ".png.tif": lambda f, s: write_labels(f / f"{s}.png.tif", TRUE),
    "_masks.TIF": lambda f, s: write_labels(f / f"{s}_masks.TIF", TRUE),
    "_cp_masks.tif": lambda f, s: write_labels(f / f"{s}_cp_masks.tif", TRUE),
    "_cp_masks.png": lambda f, s: write_label_png(f / f"{s}_cp_masks.png", TRUE),
    "_labels.tif": lambda f, s: write_labels(f / f"{s}_labels.tif", TRUE),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_every_tool_s_file_is_a_correction_of_its_image(images, proposals, folder, ending, capsys):
    WRITERS[ending](folder, "HEK_a")
    refused = []
    chosen = choose_labels(images, proposals, {}, str(folder), quarantine=refused.extend)
    assert [item.made_by for item in chosen] == ["corrected", "proposed", "proposed"]
    assert same_cells(chosen[0].instances, Instances.from_labels(TRUE))
    assert (refused, capsys.readouterr().err) == ([], "")


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("HEK/a_seg.npy", 0), ("HEK/a.ome_seg.npy", 0), ("a.ome_seg.npy", 0),
        ("b 1_seg.npy", 1), ("b 1.czi_seg.npy", 1), ("HEK_b_seg.npy", 1),
        ("N2a/a_seg.npy", 2), ("round 2/N2a_a_seg.npy", 2),
    ],
)  # fmt: skip
def test_files_are_known_by_image_id_or_by_the_name_of_the_image_s_own_file(images, proposals, folder, name, image):
    (folder / name).parent.mkdir(exist_ok=True)
    by_cellpose(folder, name.removesuffix("_seg.npy"))
    corrections, unused, _ = read_corrections(images, proposals, folder)
    assert (list(corrections), unused) == ([NAMES[image]], [])


def test_every_file_that_is_not_used_is_named(images, proposals, folder, capsys):
    write_labels(folder / "HEK_a.tif", TRUE)
    write_labels(folder / "HEK_a_masks.tif", cells(4))  # another opinion about the same image
    write_labels(folder / "HEK_bb.tif", TRUE)
    write_labels(folder / "a_masks.tif", TRUE)  # HEK/a or N2a/a?
    write_labels(folder / "N2a_a.tif", TRUE)
    write_labels(folder / "N2a_a_masks.tif", TRUE.T)
    (folder / "HEK_b_seg.npy").write_bytes(b"no array")
    for name in ("notes.txt", "Thumbs.db", ".DS_Store", "one.roi"):
        (folder / name).write_text("x")
    refused = []
    chosen = choose_labels(images, proposals, {}, str(folder), quarantine=refused.extend)
    assert [item.made_by for item in chosen] == ["proposed", "proposed", "corrected"]
    np.testing.assert_array_equal(chosen[2].labels, TRUE)
    names = [
        "HEK_a.tif",
        "HEK_a_masks.tif",
        "HEK_b_seg.npy",
        "HEK_bb.tif",
        "N2a_a_masks.tif",
        "a_masks.tif",
        "notes.txt",
        "one.roi",
    ]
    assert [item.item for item in refused] == names
    assert "fits 2 images (HEK_a, N2a_a)" in refused[5].reason
    assert refused[0].reason == (
        "HEK_a_masks.tif labels the same image otherwise; keep one; until then its image has the proposal"
    )
    assert "HEK_a.tif labels the same image otherwise; keep one" in refused[1].reason
    said = capsys.readouterr().err
    assert all(f"{name} is not used: " in said for name in names)


def test_pictures_and_by_products_beside_the_labels_are_no_labels(images, proposals, folder, capsys):
    noise = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    for stem, mode in (("HEK_a", "L"), ("N2a_a", "RGB")):
        Image.fromarray(noise).convert(mode).save(folder / f"{stem}.png")
        by_cellpose(folder, stem)
        write_labels(folder / f"{stem}_cp_masks.tif", TRUE)  # the same cells, exported too
        (folder / f"{stem}_cp_outlines.txt").write_text("0,0")
    refused = []
    chosen = choose_labels(images, proposals, {}, str(folder), quarantine=refused.extend)
    assert [item.made_by for item in chosen] == ["corrected", "proposed", "corrected"]
    assert refused == []
    said = capsys.readouterr().err
    assert "no labels: HEK_a.png, HEK_a_cp_outlines.txt, N2a_a.png, N2a_a_cp_outlines.txt" in said


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (TRUE[:, :6], r"HEK_a.tif is \(6, 6\)"),
        (np.where(TRUE == 1, -2, TRUE), "-2"),
        (np.full(SHAPE, -1), "marks every pixel as not annotated"),
        (TRUE + 0.5, "0.5|float|whole"),
        (np.stack([TRUE[:4]] * 3, axis=-1).astype(np.uint8), "HEK_a.tif"),
        (b"damaged", "HEK_a.tif"),
    ],
)
def test_a_label_image_that_cannot_be_read_is_named_although_other_files_of_the_image_can(
    images, proposals, folder, what, why
):
    from tifffile import imwrite

    write_seg(folder / "HEK_a_seg.npy", None, PROPOSED)
    write_rois(folder / "HEK_a_rois.zip", Instances.from_labels(PROPOSED))
    by_cellpose(folder, "HEK_b")
    if isinstance(what, bytes):
        (folder / "HEK_a.tif").write_bytes(what)
    else:
        imwrite(folder / "HEK_a.tif", what.astype(np.int32) if what.dtype.kind == "i" else what)
    _, unused, beside = read_corrections(images, proposals, folder)
    assert [item.item for item in unused] == ["HEK_a.tif"] and "HEK_a.tif" not in beside
    assert re.search(why, unused[0].reason), unused[0].reason


@pytest.mark.parametrize("what", ["stack", "channels", "other size", "fractions"])
def test_a_microscope_file_beside_the_labels_of_its_image_is_a_picture(images, proposals, folder, what):
    from tifffile import imwrite

    rng = np.random.default_rng(0)
    shape, axes = {"stack": ((3, *SHAPE), "ZYX"), "channels": ((2, *SHAPE), "CYX")}.get(what, ((90, 80), "YX"))
    raw = rng.integers(100, 4000, shape).astype(np.uint16)
    raw = raw.astype(np.float32) + 0.5 if what == "fractions" else raw
    imwrite(folder / "HEK_a.tif", raw, ome=True, metadata={"axes": axes})
    by_cellpose(folder, "HEK_a")
    _, unused, beside = read_corrections(images, proposals, folder)
    assert (unused, beside) == ([], ["HEK_a.tif"])


def test_the_picture_of_the_run_is_no_label_however_it_is_kept(images, proposals, folder):
    (images.root / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((*SHAPE, 4), np.uint8)).save(images.root / "images/HEK_a.png")
    (folder / "HEK_a.png").write_bytes((images.root / "images/HEK_a.png").read_bytes())
    by_cellpose(folder, "HEK_a")
    _, unused, beside = read_corrections(images, proposals, folder)
    assert (unused, beside) == ([], ["HEK_a.png"])


def test_classes_that_a_person_gave_are_said_not_to_be_used(images, proposals, folder, capsys):
    write_geojson(folder / "HEK_a.geojson", Instances.from_labels(TRUE).with_classes([1, 2]), ("HEK", "N2a"))
    write_geojson(folder / "HEK_b.geojson", Instances.from_labels(TRUE).with_classes(1), ("HEK", "N2a"))
    choose_labels(images, proposals, {}, str(folder), classes=("HEK", "N2a"))
    said = capsys.readouterr().err
    assert "classes in 1 file are not used (e.g. HEK_a.geojson): a cell gets the class of its image's line" in said
    choose_labels(images, proposals, {}, str(folder), classes=("cell",))
    assert "classes in" not in capsys.readouterr().err


def test_classes_that_a_person_gave_to_cells_of_a_mixed_image_are_kept(images, proposals, folder, tmp_path, capsys):
    mixed = images.with_records(
        [replace(r, cell_type="mixed" if k < 2 else "HEK") for k, r in enumerate(images.records)]
    )
    write_geojson(folder / "HEK_a.geojson", Instances.from_labels(TRUE).with_classes([2, 1]), ("HEK", "N2a"))
    by_cellpose(folder, "HEK_b")
    classes = ("HEK", "N2a")
    chosen = choose_labels(mixed, proposals, {}, str(folder), classes=classes, min_area_px=4)
    assert "classes in" not in capsys.readouterr().err
    labels = write_chosen(chosen, tmp_path / "labels", tmp_path / "labels.csv", mixed, classes)
    classed = with_classes(read_coco(labels / "labels.json", mixed.root), "cell_type", classes, {})
    assert [cells.class_ids.tolist() for cells in classed.instances] == [[2, 1], [0, 0], [1, 1]]


def test_a_copy_of_a_proposal_is_no_correction_unless_a_tool_saved_it(images, proposals, folder, capsys):
    write_labels(folder / "HEK_a.tif", np.where(PROPOSED == 1, 9, PROPOSED))  # the same cells under other ids
    saved_by_gui(folder / "HEK_b_seg.npy", PROPOSED)  # looked at and found right
    write_seg(folder / "N2a_a_seg.npy", None, PROPOSED)  # as cellkit wrote it, never opened
    chosen = choose_labels(images, proposals, {}, str(folder))
    assert [item.made_by for item in chosen] == ["proposed", "corrected", "proposed"]
    assert "nothing is scored there: HEK_a, N2a_a; those that are right" in capsys.readouterr().err


def test_a_person_may_say_that_a_proposal_is_right(images, proposals, folder, capsys):
    write_chosen(choose_labels(images, proposals, {}, "proposed"), folder, folder / "labels.csv")
    (folder / "labels.csv").unlink()
    (folder / "N2a_a.tif").unlink()
    (folder / "confirmed.csv").write_text(
        "image_id;split\nHEK_a;train\nN2a_a;train\nHEK_c;val\n"
    )  # rows of a table kept
    refused = []
    chosen = choose_labels(images, proposals, {}, str(folder), quarantine=refused.extend)
    assert [item.made_by for item in chosen] == ["corrected", "proposed", "proposed"]
    np.testing.assert_array_equal(chosen[0].labels, PROPOSED)
    assert [item.item for item in refused] == ["confirmed.csv line 3", "confirmed.csv line 4"]
    assert "no label file of N2a_a is in this folder" in refused[0].reason
    assert refused[1].reason.startswith("'HEK_c': named after no image")
    assert "nothing is scored there: HEK_b; those" in capsys.readouterr().err
    write_labels(folder / "HEK_a.tif", TRUE)
    assert same_cells(choose_labels(images, proposals, {}, str(folder))[0].instances, Instances.from_labels(TRUE))


def test_what_a_tool_saved_unchanged_in_a_copied_label_folder_was_looked_at(images, proposals, folder):
    from tifffile import imwrite

    write_chosen(choose_labels(images, proposals, {}, "proposed"), folder, folder / "labels.csv")
    imwrite(folder / "HEK_b.tif", PROPOSED.astype(np.uint8))  # as Fiji or napari write it
    chosen = choose_labels(images, proposals, {}, str(folder))
    assert [item.made_by for item in chosen] == ["proposed", "corrected", "proposed"]


def test_a_copied_label_folder_tells_what_was_changed_in_it(images, proposals, folder):
    former = [Instances.from_labels(cells(5))] * 3  # of another model: today's proposals are different
    chosen = choose_labels(images, former, {}, "proposed")
    write_chosen(chosen, folder, folder / "labels.csv")
    (folder / "labels.csv").unlink()
    write_labels(folder / "HEK_b.tif", TRUE)
    again = choose_labels(images, proposals, {}, str(folder))
    assert [item.made_by for item in again] == ["proposed", "corrected", "proposed"]


def test_what_was_not_changed_in_a_copied_label_folder_is_taken_whole(images, proposals, folder):
    masks = np.zeros((2, *SHAPE), bool)
    masks[0, :, :6], masks[1, 2:4, 1:5] = True, True
    both = Instances.from_masks(masks, SHAPE)
    write_chosen([Labelled(name, both.paint(), "truth", both) for name in NAMES], folder, folder / "labels.csv")
    (folder / "labels.csv").unlink()
    write_labels(folder / "HEK_b.tif", TRUE)
    again = choose_labels(images, proposals, {}, str(folder))
    assert [item.instances == both for item in again] == [True, False, True]


def test_a_copied_proposal_stays_one_when_the_model_or_its_settings_change(images, proposals, folder, tmp_path):
    write_chosen(choose_labels(images, proposals, {}, "proposed"), tmp_path / "labels", tmp_path / "labels.csv")
    for name in ("HEK_a.tif", "HEK_b.tif"):  # without labels.json, which says whose they are
        (folder / name).write_bytes((tmp_path / "labels" / name).read_bytes())
    (folder / "confirmed.csv").write_text("image_id\nHEK_b\n")
    others = [Instances.from_labels(cells(5))] * 3
    chosen = choose_labels(images, others, {}, str(folder))
    assert [item.made_by for item in chosen] == ["proposed", "corrected", "proposed"]
    np.testing.assert_array_equal(chosen[0].labels, others[0].paint())
    np.testing.assert_array_equal(chosen[1].labels, PROPOSED)
    write_labels(folder / "HEK_a.tif", PROPOSED)  # saved by a tool, which drops what cellkit wrote into it
    assert choose_labels(images, others, {}, str(folder))[0].made_by == "corrected"


def test_of_two_files_the_one_that_was_changed_is_used(images, proposals, folder):
    write_labels(folder / "HEK_a.tif", PROPOSED)
    by_fiji(folder, "HEK_a")
    corrections, unused, beside = read_corrections(images, proposals, folder)
    assert (corrections["HEK_a"].path.name, unused, beside) == ("HEK_a_rois.zip", [], ["HEK_a.tif"])


def proposed_in(folder, proposals):
    """Write the files to correct of every image, as notebook 02 does."""
    picture = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3), dtype=np.uint8)
    for name, found in zip(NAMES, proposals, strict=True):
        write_png(folder.parent / f"{name}.png", picture)
        assert write_proposal(folder, folder.parent / f"{name}.png", name, found)


def test_a_seg_file_that_a_program_changed_is_a_correction_though_it_kept_the_key_of_cellkit(
    images, proposals, folder, caplog
):
    """One cell deleted, or one drawn anew, and the whole dictionary saved: beside it lies the zip as the model proposed it."""
    proposed_in(folder, proposals)
    wanted = {"HEK_a": np.where(PROPOSED == 1, 0, PROPOSED), "HEK_b": np.where(cells(5) == 1, 3, PROPOSED)}
    for name, masks in wanted.items():
        fields = np.load(folder / f"{name}_seg.npy", allow_pickle=True).item() | {"masks": masks.astype(np.uint16)}
        np.save(folder / f"{name}_seg.npy", fields, allow_pickle=True)
    chosen = choose_labels(images, proposals, {}, str(folder))
    assert [item.made_by for item in chosen] == ["corrected", "corrected", "proposed"]
    for item, masks in zip(chosen, wanted.values(), strict=False):
        np.testing.assert_array_equal(item.labels, masks)
    assert "as the model proposed them, so they count as proposals and nothing is scored there: N2a_a;" in caplog.text


def test_an_image_whose_saved_file_cannot_be_used_is_not_said_to_be_as_proposed(images, proposals, folder, caplog):
    proposed_in(folder, proposals)
    (folder / "HEK_a_seg.npy").write_bytes((folder / "HEK_a_seg.npy").read_bytes()[:-9])
    assert [item.made_by for item in choose_labels(images, proposals, {}, str(folder))] == ["proposed"] * 3
    assert "HEK_a_seg.npy is not used: " in caplog.text and "until then its image has the proposal" in caplog.text
    assert "nothing is scored there: HEK_b, N2a_a;" in caplog.text


@pytest.mark.parametrize("form", ["tif", "seg", "roi", "geojson"])
def test_what_another_model_proposed_is_no_correction_until_somebody_changes_it(
    images, proposals, folder, tmp_path, form
):
    other = [Instances.from_labels(cells(5))] * 3
    for name in NAMES:
        write_label_png(tmp_path / f"p/{name}.png", TRUE)
    write_folder(folder, images.records, other, (), form, tmp_path / "p", made_by=["proposed"] * 3)
    by_fiji(folder, "HEK_b")
    seen = read_corrections(images, proposals, folder)[0]
    assert [name for name in NAMES if seen[name].by_person] == ["HEK_b"]


@pytest.mark.parametrize("name", ["HEK_a.geojson", "HEK_a.png.geojson"])
def test_what_qupath_saved_is_a_correction(images, proposals, folder, name):
    data = json.loads(write_geojson(folder / name, Instances.from_labels(TRUE), ("HEK",)).read_text())
    (folder / name).write_text(json.dumps(data["features"]))
    item = choose_labels(images, proposals, {}, str(folder))[0]
    assert item.made_by == "corrected"
    np.testing.assert_array_equal(item.labels, Instances.from_labels(TRUE).paint())
    (folder / name).write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        choose_labels(images, proposals, {}, str(folder))


@pytest.mark.parametrize("name", ["HEK_a.tif", "HEK_a_masks.tif", "HEK_a.png"])
@pytest.mark.parametrize("also", [False, True])
def test_a_mask_of_where_cells_are_is_no_correction(images, proposals, folder, name, also):
    where = (np.indices(SHAPE).sum(0) % 4 == 0) & (np.indices(SHAPE)[0] % 2 == 0)
    (write_label_png if name.endswith("png") else write_labels)(folder / name, 255 * where.astype(np.uint8))
    by_cellpose(folder, "HEK_b")
    if also:
        by_cellpose(folder, "HEK_a")
    corrections, (bad,), beside = read_corrections(images, proposals, folder)
    assert (sorted(corrections), bad.item, beside) == (["HEK_a", "HEK_b"] if also else ["HEK_b"], name, [])
    assert "pieces: where cells are, not which pixel is whose; number the cells: cellkit coco" in bad.reason


def test_overlapping_regions_of_fiji_stay_whole(images, proposals, folder):
    masks = np.zeros((2, *SHAPE), bool)
    masks[0, :, :6], masks[1, 2:4, 1:5] = True, True
    both = Instances.from_masks(masks, SHAPE)
    write_rois(folder / "HEK_a.zip", both)
    item = choose_labels(images, proposals, {}, str(folder))[0]
    assert item.instances == both


def test_the_labels_that_the_run_writes_itself_are_no_corrections(images, proposals):
    labels = images.root / "labels"
    labels.mkdir(parents=True)
    with pytest.raises(UserError, match="which this run writes itself\ncopy it"):
        choose_labels(images, proposals, {}, str(labels))
