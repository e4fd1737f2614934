"""What is a side of a comparison, and which of its images are one; groups that names and folders tell."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compare_cases import CLASSES, RECORDS, A, B, kaggle_of, labels_at, truth  # noqa: F401
from conftest import write_png

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.names import image_id_of, plain_stem
from cellkit.cells.records import ImageRecord
from cellkit.commands.comparison import compare_models, score_sides, scores_to_text
from cellkit.errors import UserError
from cellkit.files import read_json, write_json
from cellkit.formats.any import read_side
from cellkit.formats.coco import write_coco, write_results
from cellkit.formats.label_images import write_labels
from cellkit.formats.results import is_list
from cellkit.formats.sides import image_shapes, match_sides, name_groups
from cellkit.formats.submission import write_submission


class TestReadSide:
    def test_all_four_forms_hold_the_same_cells(self, truth, tmp_path):
        side = read_side(truth)
        results = read_side(write_results(tmp_path / "results.json", [7, 9], [A, B]), of=side)
        folder = read_side(labels_at(tmp_path / "labels", a=A, b=B))
        csv = read_side(write_submission(tmp_path / "s.csv", ["a", "b"], [A, B], "dsb2018"), of=side, profile="dsb2018")
        for other in (side, results, folder, csv):
            assert kaggle_of(side, other) == 1.0
        assert side.instances == results.instances == [A, B]
        assert (side.classes, results.classes, folder.classes, csv.classes) == (CLASSES, CLASSES, (), ())
        assert side.cells == 3

    def test_results_use_the_category_ids_of_their_coco_file(self, truth, tmp_path):
        content = read_json(truth)
        number = {1: 30, 2: 5}  # other tools number as they like; classes come in the order of the ids
        for entry in [*content["categories"], *content["annotations"]]:
            key = "category_id" if "category_id" in entry else "id"
            entry[key] = number[entry[key]]
        side = read_side(write_json(truth, content))
        assert side.classes == ("N2a", "HEK")
        rows = read_json(write_results(tmp_path / "r.json", [7], [A]))
        for row in rows:
            row["category_id"] = number[row["category_id"]]
        found = read_side(write_json(tmp_path / "r.json", rows), of=side)
        assert found.instances[0].class_ids.tolist() == side.instances[0].class_ids.tolist() == [2, 1]
        assert len(found.instances[1]) == 0, "an image without entries has no cell"
        rows[0]["category_id"] = 6
        with pytest.raises(UserError, match=r"image 7 has category_id 6, the file's are \[5, 30\]"):
            read_side(write_json(tmp_path / "r.json", rows), of=side)

    def test_results_that_seem_to_count_categories_from_0_are_said(self, truth, tmp_path):
        side = read_side(truth)
        rows = read_json(write_results(tmp_path / "r.json", [7], [A]))
        for row in rows:
            row["category_id"] -= 1
        (note,) = [x for x in read_side(write_json(tmp_path / "r.json", rows), of=side).notes if "category" in x]
        assert note.startswith("1 of 2 entries") and "has 1, 2: cells" in note and "add 1 to each category_id" in note
        rows[1]["category_id"] = 2
        (note,) = [x for x in read_side(write_json(tmp_path / "r.json", rows), of=side).notes if "category" in x]
        assert note.endswith("cells of unknown class"), "a class above all others is used: it is no shift"

    def test_no_results_are_results(self, truth, tmp_path):  # fault 33
        found = read_side(write_json(tmp_path / "r.json", []), of=read_side(truth))
        assert kaggle_of(read_side(truth), found) == 0.0

    def test_results_on_images_the_truth_lacks(self, truth, tmp_path):  # fault 31
        write_results(tmp_path / "r.json", [7, 8, 9], [A, A, B])
        with pytest.raises(UserError, match=r"2 annotations of images that are not there, e\.g\. image_id 8"):
            read_side(tmp_path / "r.json", of=read_side(truth))
        found = read_side(tmp_path / "r.json", of=read_side(truth), common=True)
        assert found.instances == [A, B]

    def test_masks_beside_images_as_cellpose_writes_them(self, tmp_path):
        write_png(tmp_path / "a.png", np.zeros((3, 5, 3), np.uint8))
        write_labels(tmp_path / "a_cp_masks.tif", A.paint())
        side = read_side(tmp_path)
        assert [(record.image_id, record.path) for record in side.records] == [("a", "a_cp_masks.tif")]
        write_labels(tmp_path / "b.tif", A.paint())
        assert "left out: 1 picture without a label file (b.tif)" in read_side(tmp_path).notes[0]

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("none", None, "no file or folder at"),
            ("a.txt", "x", "is a '.txt' file"),
            ("a.csv", "id,predicted\n", "no profile says how it counts pixels"),
            ("r.json", "[]", "tells its images by the ids they have in a COCO file"),
            ("a.json", "{}", "is no COCO file"),
            ("a.json", "{", "is no JSON"),
        ],
    )
    def test_what_is_no_side(self, tmp_path, name, content, problem):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=problem) as caught:
            read_side(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 2

    def test_a_folder_without_labels_or_with_damaged_ones(self, tmp_path):
        with pytest.raises(UserError, match="no label image in the folder"):
            read_side(tmp_path)
        (tmp_path / "a.tif").write_bytes(b"II*\0")
        with pytest.raises(UserError, match=r"a\.tif cannot be read"):
            read_side(tmp_path)

    def test_a_csv_needs_sizes(self, tmp_path):
        write_submission(tmp_path / "s.csv", ["a"], [A], "sartorius")
        with pytest.raises(UserError, match="how large its images are\n.*--images DIR"):
            read_side(tmp_path / "s.csv", profile="sartorius")
        side = read_side(tmp_path / "s.csv", profile="sartorius", shapes={"a": (3, 5)})
        assert np.array_equal(side.instances[0].paint(), A.paint())

    @pytest.mark.parametrize(("text", "answer"), [("[]", True), (' \n\t[{"a": 1}]', True), ("{}", False), ("", False)])
    def test_results_are_told_by_their_first_letter(self, tmp_path, text, answer):
        (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert is_list(tmp_path / "a.json") is answer

    def test_shapes_of_a_folder(self, tmp_path):
        write_png(tmp_path / "x/images/x.png", np.zeros((3, 5, 3), np.uint8))
        write_png(tmp_path / "y.png", np.zeros((4, 6, 3), np.uint8))
        assert image_shapes(tmp_path) == {"x": (3, 5), "y": (4, 6)}
        write_png(tmp_path / "z/y.png", np.zeros((4, 6, 3), np.uint8))
        with pytest.raises(UserError, match="two images called 'y'"):
            image_shapes(tmp_path)


class TestMatchSides:
    @pytest.mark.parametrize("ending", ["", "_cp_masks", "_labels"])
    def test_by_the_name_that_both_know(self, truth, tmp_path, ending):
        labels_at(tmp_path / "labels", **{f"a{ending}": A, f"b{ending}": B})
        mine, other = match_sides(read_side(truth), read_side(tmp_path / "labels"))
        assert [record.image_id for record in mine.records] == ["a", "b"]
        assert [len(found) for found in other.instances] == [2, 1]

    def test_spaces_are_underscores_in_ids(self, tmp_path):
        records = [ImageRecord("well_1_t0", "well 1.png", 3, 5)]
        write_coco(tmp_path / "p.json", records, [A], CLASSES)
        labels_at(tmp_path / "spaced", **{"well 1": A})
        assert kaggle_of(read_side(tmp_path / "spaced"), read_side(tmp_path / "p.json")) == 1.0
        labels_at(tmp_path / "ids", well_1_t0=A)
        assert kaggle_of(read_side(tmp_path / "ids"), read_side(tmp_path / "p.json")) == 1.0

    def test_order_is_the_truths(self, truth, tmp_path):
        write_coco(tmp_path / "p.json", RECORDS[::-1], [B, A], CLASSES)
        _, found = match_sides(read_side(truth), read_side(tmp_path / "p.json"))
        assert found.instances == [A, B]

    def test_images_of_one_side_only(self, truth, tmp_path):
        labels_at(tmp_path / "labels", a=A, c=B, d=B)
        sides = read_side(truth), read_side(tmp_path / "labels")
        with pytest.raises(
            UserError, match=r"1 of the 2 images of .* are not in .* \(b\); 2 of the 3 .* \(c, d\)\n.*--common"
        ):
            match_sides(*sides)
        assert kaggle_of(*sides, common=True) == 1.0

    def test_none_in_common(self, truth, tmp_path):
        sides = read_side(truth), read_side(labels_at(tmp_path / "labels", x=A, y=A))
        for common in (False, True):
            with pytest.raises(UserError, match=r"none of the 2 images of .* \(x, y\) is in .* \(a, b\)"):
                match_sides(*sides, common=common)

    def test_two_sizes_of_one_image(self, truth, tmp_path):  # fault 21
        labels_at(tmp_path / "labels", a=A, b=A)
        with pytest.raises(UserError, match=r"b is 2 x 5 px in .*, 3 x 5 in "):
            match_sides(read_side(truth), read_side(tmp_path / "labels"))

    def test_classes_go_by_name(self, truth, tmp_path):
        swapped = [A.with_classes([2, 1]), B.with_classes([1])]
        write_coco(tmp_path / "p.json", RECORDS, swapped, CLASSES[::-1])
        mine, other = match_sides(read_side(truth), read_side(tmp_path / "p.json"))
        assert [found.class_ids.tolist() for found in other.instances] == [[1, 2], [2]]
        assert mine.classes == other.classes == CLASSES

    def test_no_class_in_common_means_no_class(self, truth, tmp_path):
        write_coco(tmp_path / "p.json", RECORDS, [A.with_classes(1), B], ("cell", "debris"))
        mine, other = match_sides(read_side(truth), read_side(tmp_path / "p.json"))
        assert not any(found.class_ids.any() for side in (mine, other) for found in side.instances)
        assert score_sides(mine, other, ["voc"], bootstrap=0)["conventions"]["voc"]["score"] == 1.0

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            (("hek", "n2a"), "'hek' (did you mean 'HEK'?); 'n2a' (did you mean 'N2a'?); the two sides share no class"),
            (("HEK", "N2a "), "'N2a ' (did you mean 'N2a'?); they match no true class"),
        ],
    )
    def test_a_class_in_another_spelling_is_said(self, truth, tmp_path, names, told):
        write_coco(tmp_path / "p.json", RECORDS, [A, B], names)
        _, other = match_sides(read_side(truth), read_side(tmp_path / "p.json"))
        assert told in other.notes[-1]
        assert not match_sides(read_side(truth), read_side(truth))[1].notes

    def test_results_without_a_class_mean_no_class(self, truth, tmp_path):
        side = read_side(truth)
        write_results(tmp_path / "r.json", [7, 9], [A.with_classes(0), B.with_classes(0)])
        sides = match_sides(side, read_side(tmp_path / "r.json", of=side))
        assert score_sides(*sides, ["voc"], bootstrap=0)["conventions"]["voc"]["score"] == 1.0
        write_results(tmp_path / "r.json", [7, 9], [Instances.empty(A.shape), Instances.empty(B.shape)])
        sides = match_sides(side, read_side(tmp_path / "r.json", of=side))
        by_class = score_sides(*sides, ["kaggle"], by="class_name", bootstrap=0)["by"]["class_name"]
        assert by_class["HEK"]["score"] == 0.0, "a model that finds nothing misses every class"

    def test_a_class_the_truth_lacks_stays_one(self, truth, tmp_path):
        write_coco(tmp_path / "p.json", RECORDS, [A.with_classes([2, 1]), B.with_classes(3)], ("U2OS", "HEK", "N2a"))
        _, other = match_sides(read_side(truth), read_side(tmp_path / "p.json"))
        assert other.classes == ("HEK", "N2a", "U2OS")
        assert other.notes[-1].endswith(
            "classes that " + str(truth) + " does not have: 'U2OS'; they match no true class"
        )
        assert [found.class_ids.tolist() for found in other.instances] == [[1, 3], [2]]

    def test_a_run_s_labels_match_the_folders_they_came_from(self, tmp_path):
        """``HEK/a`` is HEK_a in a run, and signs that give way leave a digest of the picture's whole name."""
        names = ["HEK/a", "N2a/a", "HEK/Pru\u0308fung (0)@40", "HEK/cell 1"]
        for suffix in (".ome.tif", ".czi", ".PNG"):
            ids = [image_id_of(name + suffix) for name in names]
            truth = labels_at(tmp_path / suffix / "truth", **dict.fromkeys(names, A))
            found = labels_at(tmp_path / suffix / "labels", **dict.fromkeys(ids, A))
            assert kaggle_of(read_side(truth), read_side(found)) == 1.0


class TestForms:
    @pytest.mark.parametrize(
        ("name", "stem"), [("_masks.tif", "_masks"), ("a_MASKS.png", "a"), (".a", ".a"), ("x\\y.png", "y")]
    )
    def test_plain_stem(self, name, stem):
        assert plain_stem(name) == stem


# ---- groups that names and folders tell ----------------------------------------------------------------------------


def side_of(*paths, **how):
    records = [ImageRecord(plain_stem(path), path, 2, 5, **how) for path in paths]
    return CellDataset(records, [B] * len(records), path=Path("nowhere"))


@pytest.mark.parametrize(
    ("paths", "groups", "told"),
    [
        (["A01_s1.tif", "A01_s2.tif", "B02_s1.tif", "B02_s2_masks.tif"], ["A01", "A01", "B02", "B02"], "names (e.g. A01: 2"),
        (["m1_t001", "m1_t002", "m2_t001", "other"], ["m1", "m1", "", ""], "names"),
        (["m1/t001.png", "m1/t002.png", "m2/t001.png", "m2/t002.png"], ["m1/series"] * 2 + ["m2/series"] * 2, "names"),
        (["train/d1/a.png", "test/d1/b.png", "test/d2/c.png"], ["d1", "d1", ""], "folders (e.g. d1: 2 images)"),
        (["p1/A01_s1.tif", "p1/A01_s2.tif", "p2/x.tif", "p2/y.tif"], ["p1/A01", "p1/A01", "p2", "p2"], "names and folders"),
        (["images/a.png", "images/b.png"], ["", ""], ""),
        (["1/a.png", "2/b.png"], ["", ""], ""),
        (["HEK_HEK_01", "HEK_HEK_02", "mixed_mixed_03", "nih3t3_dna-16", "u2os_dna-5", "train_0012", "train_0013", "val_0189"],
         [""] * 8, ""),
    ],
)  # fmt: skip
def test_names_and_folders_tell_groups_where_several_images_share_one(paths, groups, told):
    side, by = name_groups(side_of(*paths))
    assert [record.group for record in side.records] == groups
    assert told in by and bool(by) == any(groups)


def test_folders_of_cell_lines_and_groups_that_are_told_are_kept_as_they_are(tmp_path):
    paths = ("HEK/a.png", "HEK/b.png", "N2a/c.png", "N2a/d.png")
    for side in (replace(side_of(*paths), classes=CLASSES), side_of(*paths, group="donor 1")):
        assert name_groups(side) == (side, "")
    (tmp_path / "classes.csv").write_text("file,label,class\n")
    assert name_groups(replace(side_of(*paths), path=tmp_path))[1] == ""


def test_the_score_of_two_folders_draws_whole_wells_and_says_so(tmp_path):
    images = {f"{well}_s{site}": B for well in ("A01", "A02", "B01", "B02") for site in (1, 2)}
    truth, found = read_side(labels_at(tmp_path / "t", **images)), read_side(labels_at(tmp_path / "p", **images))
    result = score_sides(*match_sides(truth, found), ["kaggle"], bootstrap=20)
    assert result["conventions"]["kaggle"]["interval_of"] == "4 groups (few)"
    assert "intervals: 95 %, over 4 groups (few), taken from names (e.g. A01: 2 images)\n" in scores_to_text(
        result, "t", "p"
    )
    assert "8 images of 4 groups (few)" in compare_models(truth, found, found, bootstrap=20)["sentence"]
