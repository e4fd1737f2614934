"""Foreign layouts in, records and instances out: what belongs to what, what is kept, what is skipped and why."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from conftest import convert_file, eight_bit
from layout_cases import LABELS, config, listed, save
from PIL import Image

from cellkit.cells.drawn.camera import expose
from cellkit.cells.drawn.field import draw_field
from cellkit.cells.drawn.style import FieldStyle
from cellkit.cells.instances import Instances
from cellkit.cells.records import is_scored
from cellkit.cells.resize import resize_instances
from cellkit.config.sections import Config, ConvertConfig
from cellkit.errors import UserError
from cellkit.evaluate.submission import handed_in, submit_best
from cellkit.files import write_table
from cellkit.formats.label_images import read_labels, write_labels
from cellkit.formats.samples import sample_ids
from cellkit.formats.submission_check import check_submission
from cellkit.microscope.convert import Conversion
from cellkit.microscope.flags import exclude_flagged
from cellkit.modules import names_of
from cellkit.sources import source_tables
from cellkit.sources.drawn.files import write_fields
from cellkit.sources.ingest import convert_images, detect_kind, locate_source
from cellkit.sources.inspection import classes_of


# ---- microscope files ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    files = write_fields(
        folder, images_per_line=4, mixed_images=2, size_px=128, planes=2, diameter_px=24, empty_images=1
    )
    return folder, {Path(file.path).name.removesuffix(".ome.tif"): file for file in files}


def test_drawn_fields_become_records_pictures_and_exact_truth(tmp_path, drawn):
    root, files = drawn
    cfg = config("drawn", "DAPI", "GFP", classes=("HEK", "N2a"))
    made = convert_images(cfg, root, tmp_path)
    assert not made.quarantined and len(made.images.records) == len(made.images.instances) == len(files) == 15
    for record, cells in zip(made.images.records, made.images.instances, strict=True):
        folder, name = record.image_id.split("_", 1)
        assert record.cell_type == folder and record.group == "" and record.um_per_px == 0.45
        assert record.channels == "red=;green=GFP;blue=DAPI"
        assert record.source == f"{folder}/{name}.ome.tif z max of 2"
        assert (record.file, record.scene, record.time) == (f"{folder}/{name}.ome.tif", 0, 0)
        assert record.planes == "z max of 2"
        picture = np.asarray(Image.open(tmp_path / record.path))
        (expected,) = convert_file(root / files[name].path, Conversion({"nuclei": "DAPI", "cytoplasm": "GFP"}))
        np.testing.assert_array_equal(picture, expected.image, strict=True)
        np.testing.assert_array_equal(cells.paint(), read_labels(root / files[name].truth))
        assert len(cells) == files[name].cells
        if folder != "mixed":
            assert set(cells.class_ids.tolist()) == {1 if folder == "HEK" else 2}
    assert {r.split for r in made.images.records if r.cell_type == "mixed"} == {"test"}
    assert {r.split for r in made.images.records if r.cell_type == "HEK"} == {"train", "val", "test"}
    for record in made.images.records:
        defect = files[record.image_id.split("_", 1)[1]].defect
        expected = {"out_of_focus": {"out_of_focus"}, "debris": {"debris", "saturated"}}.get(defect, set())
        assert expected & set(record.flags.split(";")) if expected else record.flags == ""


def test_cells_of_a_mixed_field_have_the_class_that_was_drawn(drawn):
    root, _ = drawn
    items = listed(root, config("drawn", "DAPI", "GFP", classes=("N2a", "HEK")))
    with open(root / "truth" / "classes.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file"] == "mixed/mixed_01.ome.tif"]
    cells = items["mixed_mixed_01"].load().instances
    assert cells.class_ids.tolist() == [("N2a", "HEK").index(row["class"]) + 1 for row in rows]
    with pytest.raises(UserError, match="the source's label 'HEK' is none of the classes"):
        listed(root, config("drawn", "DAPI", classes=("N2a", "U2OS")))
    nameless = listed(root, config("drawn", "DAPI", classes=("N2a", "U2OS"), class_names={"HEK": None}))
    assert nameless["HEK_HEK_01"].cell_type == "" and not nameless["HEK_HEK_01"].load().instances.class_ids.any()


def test_any_number_of_workers_writes_the_same_bytes(tmp_path, drawn):
    root, _ = drawn
    made = {}
    for workers in (1, 2):
        cfg = config("drawn", "DAPI", "GFP", classes=("HEK", "N2a"), scale=0.5, max_images=3, workers=workers)
        made[workers] = convert_images(cfg, root, tmp_path / str(workers))
    assert made[1].images.records == made[2].images.records and made[1].images.instances == made[2].images.instances
    names = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert len(names) == 9 + 3
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_scale_shrinks_pictures_truth_and_pixel_size_together(tmp_path, drawn):
    root, files = drawn
    cfg = config("drawn", "DAPI", "GFP", classes=("HEK", "N2a"), scale=0.5, max_images=1)
    made = convert_images(cfg, root, tmp_path)
    for record, cells in zip(made.images.records, made.images.instances, strict=True):
        truth = read_labels(root / files[record.image_id.split("_", 1)[1]].truth)
        assert (record.height_px, record.width_px, record.um_per_px) == (64, 64, 0.9) and cells.shape == (64, 64)
        expected = resize_instances(Instances.from_labels(truth), 0.5).paint()
        np.testing.assert_array_equal(cells.paint(), expected)


def test_the_demo_draws_what_its_config_says(tmp_path):
    class Stage:
        root = tmp_path / "run"

        def path(self, name):
            return tmp_path / name

        def note_reading(self, path, key, by=""):
            self.read = {key: path}

    drawn = {"images_per_line": 1, "mixed_images": 1, "size_px": 64, "planes": 1, "defect_images_per_line": 0}
    cfg = ConvertConfig(classes=("HEK", "N2a"), drawn=drawn, channels={"nuclei": "DAPI"})
    assert sorted(listed(locate_source(cfg, Stage()), cfg)) == ["HEK_HEK_01", "N2a_N2a_01", "mixed_mixed_01"]
    save(tmp_path / "data" / "some" / "a.png")
    stage = Stage()
    cfg = config("folder", data=str(tmp_path / "data"), path="some")
    assert locate_source(cfg, stage) == tmp_path / "data" / "some" == stage.read["data"]
    stage.root = tmp_path / "data" / "some" / "runs" / "a"
    with pytest.raises(UserError, match="run folder lies in the data folder"):
        locate_source(cfg, stage)


def test_run_folders_among_the_data_are_no_data(tmp_path, capsys):
    for name in ("a.png", "runs/old/images/a.png"):
        save(tmp_path / "in" / name)
    for name in ("manifest.json", "records.csv"):
        (tmp_path / "in" / "runs" / "old" / name).touch()
    assert list(listed(tmp_path / "in", config("folder"))) == ["a"]
    assert "are no data and not read: old" in capsys.readouterr().err


# ---- folders of pictures -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "image, label",
    [
        ("a.png", "a_masks.tif"), ("a.png", "a_cp_masks.png"), ("x/a.png", "x/a_label.tif"), ("a.png", "labels/a.tif"),
        ("images/a.png", "labels/a.png"), ("images/x/a.png", "labels/x/a.tif"), ("x/images/a.png", "x/masks/a.tif"),
        ("a.png", "labels/a_masks.tif"), ("x/a.png", "labels/x/a.tif"),
    ],
)  # fmt: skip
def test_a_label_image_is_found_by_its_name(tmp_path, image, label):
    save(tmp_path / image)
    (tmp_path / label).parent.mkdir(parents=True, exist_ok=True)
    if label.endswith("png"):
        save(tmp_path / label, LABELS.astype(np.uint8))
    else:
        write_labels(tmp_path / label, LABELS)
    (item,) = listed(tmp_path, config("folder")).values()
    cells = item.load().instances
    np.testing.assert_array_equal(cells.paint(), np.searchsorted([0, 1, 4, 9], LABELS))
    assert cells.class_ids.tolist() == [1, 1, 1] and item.cell_type == "cell"


def test_folders_are_the_split_the_class_and_the_group(tmp_path):
    for name in ("train/A/plate1/a.png", "val/b/plate2/images/b.png", "test/plate3/c.png", "train/d.png"):
        save(tmp_path / name)
    items = listed(tmp_path, config("folder", classes=("A", "B")))
    found = {key: (item.split, item.cell_type, item.group) for key, item in items.items()}
    assert found == {
        "train_A_plate1_a": ("train", "A", "plate1"), "val_b_plate2_b": ("val", "B", "plate2"),
        "test_plate3_c": ("test", "", "plate3"), "train_d": ("train", "", ""),
    }  # fmt: skip
    assert items["train_d"].load().instances is None


def test_a_split_by_group_keeps_groups_whole(tmp_path):
    for k in range(24):
        save(tmp_path / f"plate{k % 6}" / f"{k}.png")
    items = listed(tmp_path, config("folder", split_by="group"))
    assert all(len({i.split for i in items.values() if i.group == f"plate{k}"}) == 1 for k in range(6))
    assert {item.split for item in items.values()} == {"train", "val", "test"}


def test_halves_put_together_are_not_judged_by_even_light(tmp_path):
    for line, light in (("u2os", 40), ("nih3t3", 250)):
        for k in range(8):
            picture, labels = np.zeros((160, 240), np.uint8), np.zeros((160, 240), np.uint8)
            for n in range(40):
                y, x = 6 + 18 * (n // 10), 6 + 22 * (n % 10)
                picture[y : y + 10, x : x + 10], labels[y : y + 10, x : x + 10] = light - n % 7, n + 1
            for folder, values in (("images", picture), ("labels", labels)):
                (tmp_path / line / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(tmp_path / line / folder / f"{k}.png")
    cfg = config("two_lines", classes=("u2os", "nih3t3"), mixed_images=4)
    cfg = cfg.model_copy(update={"split": cfg.split.model_copy(update={"train": 0.25, "val": 0.25, "test": 0.5})})
    made = convert_images(cfg.model_copy(update={"duplicates": "keep"}), tmp_path, tmp_path / "run")
    mixed = [m for r, m in zip(made.images.records, made.quality, strict=True) if r.cell_type == "mixed"]
    alone = [m for r, m in zip(made.images.records, made.quality, strict=True) if r.cell_type != "mixed"]
    assert len(mixed) == 4 and all(np.isnan(m["uneven"]) for m in mixed)
    assert all(np.isfinite(m["uneven"]) for m in alone)


def test_a_group_torn_by_a_split_by_image_is_told(tmp_path, capsys):  # fault 58
    for k in range(24):
        save(tmp_path / "in" / f"plate{k % 2}" / f"{k}.png")
    convert_images(config("folder"), tmp_path / "in", tmp_path / "torn")
    said = capsys.readouterr().err
    assert "2 groups have images in more than one split (plate0, plate1)" in said and "convert.split_by: group" in said
    convert_images(config("folder", split_by="group"), tmp_path / "in", tmp_path / "whole")
    assert "more than one split" not in capsys.readouterr().err


def test_two_files_that_become_one_image_are_refused_by_name(tmp_path):  # faults 23 and 25
    save(tmp_path / "a" / "1.png"), save(tmp_path / "b" / "1.png")
    assert sorted(listed(tmp_path, config("folder"))) == ["a_1", "b_1"]
    save(tmp_path / "a_1.png")
    with pytest.raises(UserError, match=r"a/1.png and a_1.png would both be image 'a_1'"):
        convert_images(config("folder"), tmp_path, tmp_path / "run")


def test_awkward_names_go_all_the_way(tmp_path):  # fault 24
    names = ["zell ä.png", "-rf.png", "a{b}.png", "日本 語.png", "=1+1.png", "CON.png"]
    for name in names:
        save(tmp_path / "in" / name)
    made = convert_images(config("folder"), tmp_path / "in", tmp_path / "run")
    assert sorted(record.source for record in made.images.records) == sorted(names) and not made.quarantined
    assert all((tmp_path / "run" / record.path).is_file() for record in made.images.records)
    assert "'=1+1.png" in (tmp_path / "run" / "conversion.csv").read_text()
    assert "\n=" not in (tmp_path / "run" / "conversion.csv").read_text()


def test_links_are_not_followed_in_circles_nor_out_of_the_folder(tmp_path):  # faults 25 and 52
    save(tmp_path / "in" / "a.png"), save(tmp_path / "secret" / "s.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "self.png").symlink_to(tmp_path / "in" / "self.png")
    (tmp_path / "in" / "out.png").symlink_to(tmp_path / "secret" / "s.png")
    (tmp_path / "in" / "inside.png").symlink_to(tmp_path / "in" / "a.png")
    made = convert_images(config("folder"), tmp_path / "in", tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["a", "inside"]
    assert [q.item for q in made.quarantined] == ["out.png", "self.png"]
    assert all("is a link that leads" in q.reason for q in made.quarantined)
    write_labels(tmp_path / "secret" / "l.tif", LABELS)
    (tmp_path / "in" / "a_masks.tif").symlink_to(tmp_path / "secret" / "l.tif")
    with pytest.raises(UserError, match="leads out of"):
        listed(tmp_path / "in", config("folder"))["a"].load()


# ---- what cannot be used -------------------------------------------------------------------------------------------
def test_bad_images_are_set_aside_with_their_reason_and_the_rest_goes_on(tmp_path):
    root = tmp_path / "in"
    for name in ("a", "b", "short", "sized", "twice", "float", "unlabelled"):
        save(root / f"{name}.png")
        write_labels(root / f"{name}_masks.tif", LABELS)
    (root / "short.png").write_bytes((root / "a.png").read_bytes()[:200])  # fault 2
    write_labels(root / "sized_masks.tif", LABELS[:20])  # fault 21
    write_labels(root / "labels" / "twice.tif", LABELS)
    tifffile.imwrite(root / "float_masks.tif", LABELS / 2)  # fault 13
    (root / "unlabelled_masks.tif").unlink()
    (root / "empty.tif").write_bytes(b"")  # fault 3
    (root / "text.tif").write_text("no image")
    (root / "vendor.czi").write_bytes(b"ZISRAWFILE")
    made = convert_images(config("folder"), root, tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["a", "b"] and len(made.images.instances) == 2
    said = {q.item: q.reason for q in made.quarantined}
    expected = {
        "short.png": "cannot be read", "twice.png": "several label images", "float.png": "float64",
        "unlabelled.png": "has no truth", "empty.tif": "empty", "text.tif": "cannot be read",
        "vendor.czi": "vendor.czi", "sized.png": r"sized.png is 24 x 32 px, its label image",
    }  # fmt: skip
    assert set(said) == set(expected)
    assert all(part in said[name] and "\n" not in said[name] for name, part in expected.items())
    assert "sized_masks.tif is 20 x 32" in said["sized.png"]
    assert sorted(path.stem for path in (tmp_path / "run" / "images").iterdir() if path.stem in said) == []


def test_nothing_to_convert_is_an_error_of_two_lines(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.czi").write_bytes(b"x")
    for folder, said in (("missing", "does not exist"), ("empty", "no image"), ("bad", "of 1 image in .* none")):
        with pytest.raises(UserError, match=said) as error:
            convert_images(config("folder"), tmp_path / folder, tmp_path / "run")
        assert str(error.value).count("\n") == 1
    assert not (tmp_path / "run" / "conversion.csv").exists()


def test_a_channel_that_no_image_has_is_said_once_with_the_channels_there_are(tmp_path):
    save(tmp_path / "in" / "a.png")
    with pytest.raises(
        UserError, match=r"of 1 image in .* none could be used.*'DAPI' is no channel of a.png, which has 1 channel"
    ):
        convert_images(config("folder", "DAPI"), tmp_path / "in", tmp_path / "run")
    with pytest.raises(UserError, match="names neither nuclei nor cytoplasm"):
        convert_images(config("folder", None), tmp_path / "in", tmp_path / "run")


# ---- tables --------------------------------------------------------------------------------------------------------
def test_tables_cannot_carry_formulas(tmp_path):  # fault 46
    path = write_table(tmp_path / "a.csv", [{"a": "=cmd()", "b": -1.25}, {"a": "@x", "b": 2, "c": "plain"}])
    assert path.read_text() == "a,b,c\n'=cmd(),-1.25,\n'@x,2,plain\n"


# ---- all of them ---------------------------------------------------------------------------------------------------
def test_every_source_is_a_choice_of_the_config_and_shown_in_the_data_readme():
    from cellkit.config.sections import ConvertConfig

    choices = ConvertConfig.model_fields["source"].annotation.__args__
    assert set(choices) == set(names_of("source"))
    layouts = (Path(__file__).parents[2] / "data" / "README.md").read_text().split("## Layouts")[1]
    assert [name for name in choices if name not in layouts] == []


def test_every_config_is_accepted_and_in_the_data_readme():
    from cellkit.config.reading import load_config

    folder = Path(__file__).parents[2]
    told = (folder / "data" / "README.md").read_text()
    for path in sorted((folder / "configs").glob("*.yaml")):
        cfg = load_config(path).convert
        assert f"configs/{path.name}" in told and (cfg.source == "drawn" or f"`{cfg.path}/`" in told)


@pytest.mark.realdata
def test_every_set_is_told_by_what_lies_in_it(data_folder):
    kinds = {"sartorius": "sartorius", "bccd": "voc", "blood": "box_csv", "hepg2_huh7": "hepg2_huh7"}
    kinds |= {"dkfz": "labelme", "dsb2018": "dsb2018", "two_lines": "two_lines", "small_pairs": "folder"}
    assert {name: detect_kind(data_folder / name) for name in kinds} == kinds
    assert classes_of(data_folder / "bccd", "voc") == ("Platelets", "RBC", "WBC")


# ---- what is handed in ---------------------------------------------------------------------------------------------
def competition(root):
    """Labelled pictures in train and val, others in test: labelled, glare, unlabelled, torn."""
    rng = np.random.default_rng(4)
    for split, names in (("train", "123"), ("val", "45"), ("test", ("1", "glare", "bare", "torn"))):
        for name in names:
            field = draw_field(("HEK",), FieldStyle(size_px=(96, 130), diameter_px=22.0), [int(rng.integers(99)), 5])
            nuclei = eight_bit(expose(field, FieldStyle(size_px=(96, 130)), [int(rng.integers(99)), 6])[0])
            nuclei = nuclei if name != "glare" else np.maximum(nuclei, 255 * (nuclei > 60)).astype(np.uint8)
            save(root / "images" / split / f"{name}.png", nuclei)
            write_labels(root / "labels" / split / f"{name}.tif", field.labels)
    (root / "labels" / "test" / "bare.tif").unlink()
    torn = root / "images" / "test" / "torn.png"
    torn.write_bytes(torn.read_bytes()[:300])


def test_every_test_image_is_kept_or_named_and_known_by_its_own_name_and_size(tmp_path, capsys):
    competition(tmp_path / "in")
    cfg = config("folder", scale=0.5, duplicates="keep")
    made = convert_images(cfg, tmp_path / "in", tmp_path / "run")
    records = {record.image_id: record for record in exclude_flagged(made.images.records)}
    assert [records[f"test_{name}"].split for name in ("1", "glare", "bare")] == ["test"] * 3
    assert "saturated" in records["test_glare"].flags and not is_scored(records["test_glare"])
    assert {record.image_id for record in made.images.records} - {"test_bare"} == {
        record.image_id for record in made.images.with_truth().records
    }
    asked = handed_in({"originals": tmp_path / "run" / "originals.csv"}, "test")
    assert [(one.id, one.image_id, one.shape) for one in asked] == [
        ("1", "test_1", (96, 130)), ("bare", "test_bare", (96, 130)), ("glare", "test_glare", (96, 130)),
        ("torn", "test_torn", None),
    ]  # fmt: skip
    assert records["test_1"].height_px == 48 and "cannot be read" in asked[3].note
    said = capsys.readouterr().err
    assert "torn.png" in said and "bare.png: has no truth" in said and "predicted and handed in, not scored" in said


def test_flagged_and_unreadable_test_images_have_a_row_in_what_is_handed_in(tmp_path):
    competition(tmp_path / "in")
    ids = ["torn", "glare", "1"]
    (tmp_path / "in" / "sample_submission.csv").write_text("ImageId,EncodedPixels\n" + "".join(f"{i},\n" for i in ids))
    made = convert_images(config("folder"), tmp_path / "in", tmp_path / "run")
    records = {record.image_id: record for record in made.images.records}
    cell = Instances.from_labels(np.pad(np.ones((9, 9), int), ((0, 87), (0, 121))))
    found = {name: cell for name in records}
    asked = handed_in({"originals": tmp_path / "run" / "originals.csv"}, "test")
    path, _ = submit_best(tmp_path / "s.csv", found, asked, "dsb2018")
    sample = sample_ids(tmp_path / "in" / "sample_submission.csv", "dsb2018")
    assert check_submission(path, "dsb2018", ids=sample) == [] and len(path.read_text().splitlines()) == 1 + len(ids)
    rows = dict(line.split(",") for line in path.read_text().splitlines()[1:])
    assert rows["glare"] and rows["1"] == rows["glare"] and rows["torn"] == "", (
        "a flagged one is predicted; a torn one empty"
    )
    reasons = [problem.reason for problem in check_submission(path, "dsb2018", ids=[*ids[1:], "more"])]
    assert "image 'torn' is not in the test set" in reasons and any("image 'more' is missing" in one for one in reasons)


def test_an_image_that_no_submission_can_name_is_refused_before_anything_is_trained(tmp_path):
    items = [SimpleNamespace(own_id="1")]
    (tmp_path / "sample_submission.csv").write_text("ImageId,EncodedPixels\n1,\n=2,\n")
    with pytest.raises(UserError, match=r"sample_submission.csv asks for the image '=2', and that begins with '='"):
        source_tables.asked_ids(tmp_path, items)


def test_a_sample_submission_says_what_is_handed_in(tmp_path, capsys):
    competition(tmp_path / "in")
    (tmp_path / "in" / "stage1_sample_submission.csv").write_text("ImageId,EncodedPixels\nglare,\ngone,1 1\n1,\n")
    convert_images(config("folder"), tmp_path / "in", tmp_path / "run")
    asked = handed_in({"originals": tmp_path / "run" / "originals.csv"}, "test")
    assert [(one.id, one.image_id) for one in asked] == [("1", "test_1"), ("glare", "test_glare"), ("gone", "")]
    capsys.readouterr()
    (tmp_path / "in" / "stage1_sample_submission.csv").write_text("ImageId,EncodedPixels\nz,\n")
    convert_images(config("folder"), tmp_path / "in", tmp_path / "other")
    assert "names 1 images, none of which is here: it is not followed" in capsys.readouterr().err
    assert len(handed_in({"originals": tmp_path / "other" / "originals.csv"}, "test")) == 4


def test_names_with_spaces_and_brackets_are_handed_in_as_they_are(tmp_path):
    for name in ("test/cell 1.png", "test/x(2).png", "train/1.png"):
        save(tmp_path / "in" / name)
    convert_images(config("folder"), tmp_path / "in", tmp_path / "run")
    assert [one.id for one in handed_in({"originals": tmp_path / "run" / "originals.csv"}, "test")] == [
        "cell 1",
        "x(2)",
    ]


def test_two_files_of_one_stem_are_handed_in_under_the_ids_of_the_run(tmp_path):
    for name in ("test/a/1.png", "test/b/1.png", "test/=2.png", "train/1.png"):
        save(tmp_path / "in" / name)
    convert_images(config("folder"), tmp_path / "in", tmp_path / "run")
    asked = handed_in({"originals": tmp_path / "run" / "originals.csv"}, "test")
    assert [one.id for one in asked] == [one.image_id for one in asked] and len(asked) == 3
    assert [one.id for one in handed_in({"originals": tmp_path / "run" / "originals.csv"}, "train")] == ["1"]


def test_test_images_decide_neither_the_scale_nor_the_limits_of_others(tmp_path):
    competition(tmp_path / "in")
    cfg = config("folder", percentiles_of="batch", duplicates="keep")
    before = convert_images(cfg, tmp_path / "in", tmp_path / "before")
    for name in ("1", "bare"):
        picture = tmp_path / "in" / "images" / "test" / f"{name}.png"
        save(picture, np.asarray(Image.open(picture)) // 5)
        save(picture.with_name(f"{name}{name}.png"), np.full((96, 130), 255, np.uint8))
    after = convert_images(cfg, tmp_path / "in", tmp_path / "after")
    assert after.thresholds == before.thresholds
    flags = {record.image_id: record.flags for record in after.images.records}
    for record in before.images.records:
        if record.split != "test":
            assert flags[record.image_id] == record.flags
            assert (tmp_path / "after" / record.path).read_bytes() == (tmp_path / "before" / record.path).read_bytes()
    assert {row["scaled_by"] for row in after.conversion} == {"percentiles 0.3 and 99.8 of the training images"}


def test_a_set_of_one_image_begins_and_says_what_will_not_be_told(tmp_path, capsys):
    save(tmp_path / "in" / "a.png")
    made = convert_images(config("folder"), tmp_path / "in", tmp_path / "run", Config())
    assert [record.split for record in made.images.records] == ["train"]
    said = capsys.readouterr().err
    assert "no validation image: training images judge" in said and "no test image: no score is reported" in said
