"""Label images in OME-Zarr 0.4 and 0.5, there and back: no pixel, class or number lost, and ome-zarr-py opens them."""

import json
import random
import shutil
import warnings

import numpy as np
import pytest
from conftest import write_png
from exchange_cases import CLASSES, TWO, records, two

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.any import format_of, read_folder, read_side, write_folder
from cellkit.formats.contract import ImageToWrite, Reading
from cellkit.formats.label_images import read_labels, stamp_of
from cellkit.formats.ome_zarr import read_image, write_image, written_here
from cellkit.formats.zarr_labels import about_labels
from cellkit.formats.zarr_writing import level_shapes, smaller, whole_folder
from cellkit.microscope.open import inspect_file

FORMS = ("ome-zarr", "ome-zarr-0.4")


def write_stack(path, planes, um_per_px=0.25, version="0.5", axes="cyx"):
    """An OME-Zarr image, by zarr itself."""
    import zarr

    group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    group.create_array("0", data=planes)
    group.create_array("1", data=np.ascontiguousarray(planes[..., ::2, ::2]))
    space = {"type": "space", "unit": "micrometer"}
    named = [{"name": axis, **({"type": "channel"} if axis == "c" else space)} for axis in axes]
    lead = [1.0] * (len(axes) - 2)
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [*lead, *[um_per_px * 2**k] * 2]}]}
        for k in (0, 1)
    ]
    made = {"multiscales": [{"axes": named, "datasets": datasets, "version": version}]}
    group.attrs.update(made if version == "0.4" else {"ome": {"version": "0.5"} | made})
    return path


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_png(tmp_path / f"pictures/{name}.png", rng.integers(0, 255, (3, 5, 3)).astype(np.uint8))
    return tmp_path / "pictures"


def read_back(path):
    """Return image and labels of an OME-Zarr as ome-zarr-py reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader as Opened

        nodes = list(Opened(parse_url(str(path)))())
        return {
            node.zarr.basename(): ([np.asarray(level) for level in node.data], node.metadata)
            for node in nodes
            if node.data
        }


# ---- there and back ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
def test_a_folder_there_and_back(tmp_path, pictures, form):
    made = [two(scores=[1, 0.25]), two(class_ids=[0, 1]).with_unknown(TWO == 0)]
    done = write_folder(tmp_path / "z", records("a", "b"), made, CLASSES, form, pictures)
    assert (done.files, done.lost, done.quarantined) == (2, 0, [])
    assert sorted(path.name for path in (tmp_path / "z").iterdir()) == ["a.ome.zarr", "b.ome.zarr"]
    assert format_of(tmp_path / "z") == "ome_zarr"
    side, skipped = read_folder(tmp_path / "z")
    assert (side.instances, side.classes, skipped) == (made, CLASSES, [])
    assert read_side(tmp_path / "z/a.ome.zarr").instances == made[:1]
    assert inspect_file(tmp_path / "z/a.ome.zarr").series[0].shape == (3, 3, 5)
    assert write_folder(tmp_path / "z", records("a", "b"), made, CLASSES, form, pictures).files == 2, "ours, again"
    assert read_folder(tmp_path / "z")[0].instances == made


@pytest.mark.parametrize("form", FORMS)
def test_a_thousand_scenes_come_back_pixel_by_pixel(tmp_path, form):
    rng = np.random.default_rng(5)
    image = write_stack(tmp_path / "a.zarr", np.zeros((1, 40, 40), np.uint16), version="0.4" if "4" in form else "0.5")
    scenes = 0
    for _ in range(10):  # a hundred scenes in each image
        labels = rng.permutation(2000)[
            rng.integers(0, 3, (40, 40)) + np.kron(np.arange(100).reshape(10, 10) * 3, np.ones((4, 4), int))
        ]
        labels[rng.random((40, 40)) < 0.3] = 0
        labels[rng.random((40, 40)) < 0.1] = -1
        found = Instances.from_labels(labels)
        found = found.with_classes(rng.integers(0, 3, len(found))).with_scores(rng.random(len(found)))
        write_image(tmp_path / "a.ome.zarr", ImageToWrite("a", found, CLASSES, picture=image, form=form))
        back = read_image(image, Reading())
        assert (back.cells, back.classes) == (found, CLASSES)
        assert back.numbers.tolist() == list(range(1, len(found) + 1))
        assert np.array_equal(read_labels(image / "labels/cells"), found.paint(unknown=-1))
        scenes += 100
    assert scenes == 1000


@pytest.mark.parametrize("form", FORMS)
def test_ome_zarr_py_opens_image_and_labels(tmp_path, form):
    labels = np.zeros((700, 1201), np.int32)
    labels[100:300, 200:400], labels[301:500, 1000:1201], labels[699, 0] = 1, 2, 3
    write_png(tmp_path / "p/a.png", np.random.default_rng(0).integers(0, 255, (700, 1201, 3)).astype(np.uint8))
    found = Instances.from_labels(labels, [1, 2, 0], [1, 0.5, 1])
    record = ImageRecord("a", "p/a.png", 700, 1201, um_per_px=0.5)
    write_folder(tmp_path / "z", [record], [found], CLASSES, form, tmp_path / "p")
    opened = read_back(tmp_path / "z/a.ome.zarr")
    assert inspect_file(tmp_path / "z/a.ome.zarr").series[0].um_per_px == 0.5
    levels, about = opened["a.ome.zarr"]
    sides = [one[0]["scale"][-1] for one in about["coordinateTransformations"]]
    assert sides == [0.5, 1, 2] == [one[0]["scale"][-1] for one in opened["cells"][1]["coordinateTransformations"]]
    assert [level.shape for level in levels] == [(3, 700, 1201), (3, 350, 601), (3, 175, 301)]
    levels, about = opened["cells"]
    assert [level.shape for level in levels] == [(700, 1201), (350, 601), (175, 301)], "as many as the image has"
    assert np.array_equal(levels[0], labels)
    assert all(set(np.unique(level)) <= {0, 1, 2, 3} for level in levels), "no number between two others"
    assert np.array_equal(levels[1], labels[::2, ::2])
    assert about["properties"][2] == {"class": "N2a, é", "score": 0.5}
    assert set(about["color"]) == {1, 2, 3}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("found", [two().with_unknown(TWO == 0), Instances.empty(TWO.shape)])
def test_the_metadata_are_valid_by_the_models_of_the_format(tmp_path, pictures, form, found):
    pytest.importorskip("ome_zarr_models")
    import zarr
    from ome_zarr_models import v04, v05

    write_folder(tmp_path / "z", records("a"), [found], CLASSES, form, pictures)
    version = v04 if form.endswith("0.4") else v05
    for where, check in (
        ("", version.image.ImageAttrs),
        ("labels", version.labels.LabelsAttrs),
        ("labels/cells", version.image_label.ImageLabelAttrs),
    ):
        attributes = dict(zarr.open_group(str(tmp_path / "z/a.ome.zarr" / where), mode="r").attrs)
        check.model_validate(attributes if version is v04 else attributes["ome"])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_are_added_to_an_ome_zarr_with_its_version_and_scale(tmp_path, version):
    image = write_stack(tmp_path / "i/a.zarr", np.arange(30, dtype=np.uint16).reshape(2, 3, 5), version=version)
    before = sorted(path.name for path in image.iterdir())
    write_folder(tmp_path / "i", records("a"), [two()], CLASSES, "ome-zarr", tmp_path / "i")
    assert sorted({path.name for path in image.iterdir()} - set(before)) == ["labels"]
    file = image / ("labels/cells/.zattrs" if version == "0.4" else "labels/cells/zarr.json")
    attributes = json.loads(file.read_text())
    metadata = attributes if version == "0.4" else attributes["attributes"]["ome"]
    (scales,) = metadata["multiscales"]
    assert [axis["name"] for axis in scales["axes"]] == ["y", "x"]
    assert [one["coordinateTransformations"][0]["scale"] for one in scales["datasets"]] == [[0.25] * 2, [0.5] * 2]
    assert metadata["image-label"]["source"] == {"image": "../../"}
    assert metadata["image-label"]["version"] == version
    assert read_back(image)["cells"][0][0].shape == (3, 5)
    listed = json.loads((image / ("labels/.zattrs" if version == "0.4" else "labels/zarr.json")).read_text())
    assert (listed if version == "0.4" else listed["attributes"]["ome"])["labels"] == ["cells"]


def test_labels_of_others_beside_ours_stay_and_ours_are_read(tmp_path):
    image = write_stack(tmp_path / "i/a.zarr", np.zeros((1, 3, 5), np.uint16))
    shutil.copytree(write_stack(tmp_path / "n.zarr", TWO[None].astype(np.uint8)), image / "labels/nuclei")
    write_folder(tmp_path / "i", records("a"), [two()], CLASSES, "ome-zarr", tmp_path / "i")
    assert (image / "labels/nuclei").is_dir()
    assert read_folder(tmp_path / "i")[0].instances == [two()]


def test_overlapping_cells_are_painted_and_the_loss_is_told(tmp_path, pictures):
    found = Instances.from_masks([TWO > 0, TWO == 2], TWO.shape, scores=[0.5, 1])
    done = write_folder(tmp_path / "z", records("a"), [found], (), "ome-zarr", pictures)
    assert (done.lost, done.left_out) == (1, 0)


def test_a_model_s_proposals_stay_marked_until_somebody_changes_them(tmp_path, pictures):
    import zarr

    write_folder(tmp_path / "z", records("a"), [two()], CLASSES, "ome-zarr", pictures, made_by=["proposed"])
    path = tmp_path / "z/a.ome.zarr"
    assert read_image(path, Reading()).made_by == "proposed"
    assert written_here(path)
    array = zarr.open_group(str(path / "labels/cells"))["0"]
    array[0, 2] = 2  # as napari would save it
    back = read_image(path, Reading())
    assert (back.made_by, back.cells.areas_px.tolist(), back.cells.class_ids.tolist()) == ("", [4, 5], [2, 1])
    assert not written_here(path)
    done = write_folder(tmp_path / "y", records("a", "b"), [two()] * 2, CLASSES, "ome-zarr", pictures)
    shutil.copytree(path, tmp_path / "y/a.ome.zarr", dirs_exist_ok=True)
    done = write_folder(tmp_path / "y", records("a", "b"), [two()] * 2, CLASSES, "ome-zarr", pictures)
    assert [item.item for item in done.quarantined] == ["a"]
    assert "not as cellkit wrote it" in done.quarantined[0].reason


# ---- what is refused -----------------------------------------------------------------------------------------------
def test_an_image_of_another_program_is_not_written_over(tmp_path, pictures):
    write_stack(tmp_path / "z/a.ome.zarr", np.zeros((1, 3, 5), np.uint16))
    with pytest.raises(UserError, match="not as cellkit wrote it"):
        write_folder(tmp_path / "z", records("a"), [two()], CLASSES, "ome-zarr", pictures)


def test_a_write_that_is_cut_short_leaves_the_former_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.ome.zarr"
    for text in ("old", "new"):
        with whole_folder(path) as folder:
            (folder / "text").write_text(text)
    assert (path / "text").read_text() == "new" and [one.name for one in tmp_path.iterdir()] == ["a.ome.zarr"]
    removed = []
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **how: removed.append((folder, path.exists())))
    with whole_folder(path) as folder:
        (folder / "text").write_text("newer")
    assert removed and all(folder != path and there for folder, there in removed)


def test_no_picture_no_ome_zarr(tmp_path):
    with pytest.raises(UserError, match="goes with its picture"):
        write_folder(tmp_path, records("a"), [two()], CLASSES, "ome-zarr")


def test_a_stack_and_another_size_are_refused_and_leave_nothing(tmp_path):
    image = write_stack(tmp_path / "i/a.zarr", np.ones((4, 3, 5), np.uint16), axes="zyx")
    for name, text in (("i", "labels are"), ("z", "convert it to one picture")):
        with pytest.raises(UserError, match=text):
            write_folder(tmp_path / name, records("a"), [two()], CLASSES, "ome-zarr", tmp_path / "i")
    assert list((tmp_path / "z").glob("*")) == []
    assert not (image / "labels/cells").exists()


def test_damaged_metadata(tmp_path, pictures):
    write_folder(tmp_path / "z", records("a"), [two()], CLASSES, "ome-zarr", pictures)
    file = tmp_path / "z/a.ome.zarr/labels/cells/zarr.json"
    good = json.loads(file.read_text())
    for change, text in (
        ({"cellkit": {"classes": [3]}}, "names its classes as"),
        ({"ome": {"multiscales": []}}, "cannot be read"),
        ({"ome": {"multiscales": [{"datasets": [{"path": "7"}]}]}}, "cannot be read"),
    ):
        file.write_text(json.dumps(good | {"attributes": good["attributes"] | change}))
        with pytest.raises(UserError, match=text):
            read_image(tmp_path / "z/a.ome.zarr", Reading())
    file.write_text("{")
    with pytest.raises(UserError):
        read_image(tmp_path / "z/a.ome.zarr", Reading())


def test_metadata_that_say_nothing_of_a_cell_are_passed_over(tmp_path):
    image = write_stack(tmp_path / "a.zarr", np.zeros((1, 3, 5), np.uint16))
    shutil.copytree(write_stack(tmp_path / "n.zarr", TWO[None].astype(np.uint8)), image / "labels/cells")
    file = image / "labels/cells/zarr.json"
    rows = [
        {"label-value": 2, "class": "HEK", "score": 7},
        {"label-value": "2"},
        5,
        {"label-value": 9, "class": "x<b>"},
    ]
    data = json.loads(file.read_text())
    data["attributes"]["ome"]["image-label"] = {"properties": rows}
    file.write_text(json.dumps(data))
    found = read_image(image, Reading())
    assert found.classes == ("HEK", "x<b>")
    assert found.cells == two(class_ids=[0, 1])
    assert about_labels(image / "labels/cells").stamp == ""
    assert stamp_of(TWO)


def test_copies_are_made_of_pixels_that_are_there():
    assert level_shapes((1, 1)) == [(1, 1)]
    labels = np.arange(35).reshape(5, 7)
    assert smaller(labels, (3, 4)).tolist() == labels[::2, ::2].tolist()
    assert smaller(labels, (5, 7)) is labels


@pytest.mark.filterwarnings("ignore")  # of zarr, of extensions that the mangled metadata name
def test_mangled_metadata_are_read_or_refused(tmp_path, pictures):
    from test_fuzz import mangled_value

    write_folder(tmp_path / "z", records("a"), [two().with_unknown(TWO == 0)], CLASSES, "ome-zarr", pictures)
    path = tmp_path / "z/a.ome.zarr"
    files = [path / "labels/zarr.json", path / "labels/cells/zarr.json", path / "labels/cells/0/zarr.json"]
    told = {"read": 0, "refused": 0}
    for number in range(240):
        file = files[number % 3]
        good = file.read_text(encoding="utf-8")
        data = mangled_value(json.loads(good), random.Random(number))
        file.write_text(json.dumps(data), encoding="utf-8", errors="surrogatepass")
        try:
            found = read_image(path, Reading())
            told["read"] += 1
            assert found.cells.class_ids.max(initial=0) <= len(found.classes)
        except UserError as error:
            told["refused"] += 1
            assert "\n" in str(error), error
        file.write_text(good, encoding="utf-8")
    assert min(told.values()) > 30, told
