"""Label pictures and folders of them, to and from other tools."""

import json
import unicodedata
import zipfile

import numpy as np
import pytest
import tifffile
from conftest import write_png
from exchange_cases import CLASSES, TWO, cells, pictures, records, refused, two  # noqa: F401

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.any import format_of, read_folder, write_folder
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels, write_labels
from cellkit.formats.labels import write_label_png
from cellkit.formats.roi import write_rois
from cellkit.formats.seg import read_seg, write_seg

# ---- label pictures and folders ------------------------------------------------------------------------------------


def test_label_pngs(tmp_path):
    labels = np.array([[0, 1], [300, 65_535]])
    np.testing.assert_array_equal(read_labels(write_label_png(tmp_path / "a_masks.png", labels)), labels)
    for path, wrong, reason in (
        ("b.png", labels + 1, "a PNG holds 65535"),
        ("b.tif", labels, "end it with .png"),
        ("b.png", labels - 1, "not annotated"),
        ("b.png", labels - 2, "relabel first"),
        ("b.png", labels * 0.5, "relabel first"),
    ):
        with pytest.raises(UserError, match=reason):
            write_label_png(tmp_path / path, wrong)
    assert list(tmp_path.iterdir()) == [tmp_path / "a_masks.png"]


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


def test_pictures_beside_their_cells_are_no_labels(tmp_path, said):
    """As the remedy for ROI zips beside their images has it: ``cellkit coco FOLDER --images FOLDER``."""
    (tmp_path / "rois/HEK").mkdir(parents=True)
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"rois/HEK/{name}.tif", np.zeros((2, *TWO.shape), np.uint16), imagej=True)
    write_rois(tmp_path / "rois/HEK/a_rois.zip", two(), CLASSES)
    write_rois(tmp_path / "rois/HEK/b.zip", two(), CLASSES)
    code, _, err = said("coco", tmp_path / "rois", "-o", tmp_path / "r.json", "--images", tmp_path / "rois")
    assert code == 0, err
    assert [len(cells) for cells in read_coco(tmp_path / "r.json").instances] == [2, 2]
    write_labels(tmp_path / "rois/HEK/a_masks.tif", TWO)
    assert "holds labels and roi" in refused(read_folder, tmp_path / "rois", None, tmp_path / "rois")


def test_what_a_folder_holds_is_told_or_asked(tmp_path):
    write_labels(tmp_path / "l/a.tif", TWO)
    assert format_of(tmp_path / "l") == "labels"
    write_seg(tmp_path / "l/a_seg.npy", None, two(), CLASSES)
    assert format_of(tmp_path / "l/a_seg.npy") == "seg"
    assert "holds labels and seg\nkeep one kind there, or read one of them: cellkit coco" in refused(
        read_folder, tmp_path / "l"
    )
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
