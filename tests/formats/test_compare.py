"""The two sides of a score, from whatever they are stored in."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_png

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.names import image_id_of, plain_stem
from cellkit.cells.records import ImageRecord, write_records
from cellkit.commands.comparison import compare_models, score_sides, scores_to_text
from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.files import read_json, write_json
from cellkit.formats.any import read_side
from cellkit.formats.coco import write_coco, write_results
from cellkit.formats.label_images import write_labels
from cellkit.formats.results import is_list
from cellkit.formats.sides import image_shapes, match_sides, name_groups
from cellkit.formats.submission import write_submission

CLASSES = ("HEK", "N2a")


def cells(*rows: str, class_ids=None, scores=None) -> Instances:
    """Objects drawn as digits: cells("1102", "1102")."""
    return Instances.from_labels(np.array([[int(c) for c in row] for row in rows]), class_ids, scores)


A = cells("11022", "11022", "00000", class_ids=[1, 2])
B = cells("00111", "00111", class_ids=[2])
RECORDS = [
    ImageRecord("a", "images/a.png", 3, 5, cell_type="mixed", split="test"),
    ImageRecord("b", "images/b.png", 2, 5, cell_type="N2a", split="test"),
]


@pytest.fixture
def truth(tmp_path):
    """A COCO file of two images, numbered 7 and 9."""
    return write_coco(tmp_path / "truth.json", RECORDS, [A, B], CLASSES, ids=[7, 9])


def labels_at(folder, **images):
    for name, found in images.items():
        write_labels(folder / f"{name}.tif", found.paint())
    return folder


def kaggle_of(truth, found, **how) -> float:
    sides = match_sides(truth, found, **how)
    return score_sides(*sides, conventions=["kaggle"], bootstrap=0)["conventions"]["kaggle"]["score"]


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


class TestRun:
    """A run folder of four images of two lines, one of each split and one excluded; the model predicted two."""

    @pytest.fixture
    def run(self, tmp_path):
        run, splits = tmp_path / "run", ("train", "val", "test", "")
        records = [ImageRecord(f"HEK_{k}", f"images/HEK_{k}.png", 3, 5, "", "HEK", "", s) for k, s in enumerate(splits)]
        write_records(run / "records.csv", records)
        write_json(run / "manifest.json", {"format": 1, "stages": {}, "attempts": {}})
        for record in records:
            write_png(run / record.path, np.zeros((3, 5, 3), np.uint8))
        write_coco(run / "truth.json", records, [A] * 4, CLASSES)
        for k, split in enumerate(splits[:3]):
            write_coco(run / f"coco/{split}.json", [records[k]], [A], CLASSES, ids=[k + 1])
        write_results(run / "predictions/x.json", [2, 3], [A, Instances.empty(A.shape)])
        write_results(run / "proposals.json", [1, 4], [A.with_classes(0), A.with_classes(0)])
        return run

    @pytest.mark.parametrize(
        ("truth", "images", "score"),
        [("truth.json", 2, 0.5), ("coco/test.json", 1, 0.0), ("coco/val.json", 1, 1.0), ("../mine", 2, 0.5)],
    )
    def test_predictions_are_scored_on_the_images_they_were_asked_about(self, said, run, truth, images, score):
        labels_at(run.parent / "mine", **{f"HEK/{k}": A for k in range(4)})
        how = ("--convention", "kaggle", "--bootstrap", "0", "--json")
        code, out, err = said("score", run / truth, run / "predictions/x.json", *how)
        told = json.loads(out)
        assert (code, told["images"], told["conventions"]["kaggle"]["score"]) == (0, images, score)
        assert f"note: scored on {images} of the " in err
        code, out, _ = said("score", run / "coco/val.json", run / "predictions/x.json", "--by", "class_name", *how)
        assert list(json.loads(out)["by"]["class_name"]) == list(CLASSES), "classes are the run's"

    def test_images_that_a_foreign_truth_lacks_are_missed(self, run, tmp_path):
        sides = read_side(labels_at(tmp_path / "mine", HEK_1=A)), read_side(run / "predictions/x.json")
        with pytest.raises(UserError, match=r"1 of the 2 images of .* are not in .* \(HEK_2\)"):
            match_sides(*sides)

    @pytest.mark.parametrize(("form", "end"), [("seg", "_seg.npy"), ("roi", "_rois.zip"), ("tif", ".tif")])
    def test_proposals_go_to_the_labelling_tools(self, said, run, form, end):
        out = run.parent / "out"
        assert said("labels", run / "proposals.json", "--format", form, "-o", out)[0] == 0
        marks = ["labels.json"] if form == "tif" else []
        assert sorted(path.name for path in out.iterdir()) == [f"HEK_0{end}", f"HEK_3{end}", *marks]
        assert said("labels", run / "coco/val.json", "--format", form, "-o", out)[0] == 0

    @pytest.mark.parametrize("truth", ["proposals.json", "predictions/x.json"])
    def test_what_a_model_found_is_no_truth(self, said, run, truth):
        how = ("--convention", "kaggle", "--bootstrap", "0", "--common")
        for side in (run / truth, run.parent / "out"):
            code, out, err = said("score", side, run / truth, *how)
            assert (code, out) == (2, "") and f"{side} holds proposals, no truth: accuracy cannot be measured" in err
            assert "note: " not in err, "what does not count is refused before anything is said of it"
            said("labels", run / truth, "-o", run.parent / "out")

    def test_elsewhere_a_list_needs_its_coco_file(self, said, run):
        results = write_results(run.parent / "r.json", [2], [A])
        code, _, err = said("labels", results, "-o", run.parent / "out")
        assert code == 2 and "--coco of cellkit submit and labels" in err
        assert said("labels", results, "-o", run.parent / "out", "--coco", run / "truth.json")[0] == 0
        code, _, err = said("labels", run / "truth.json", "-o", run.parent / "o", "--coco", run / "truth.json")
        assert code == 2 and "is no results list" in err
        code, _, err = said("score", run / "truth.json", results, "--bootstrap", "0")
        assert code == 0 and "has no entry for 3 of 4 images: nothing was found there" in err

    def test_submissions(self, said, run):
        arguments = ("submit", run / "predictions/x.json", "--profile", "sartorius", "-o", run.parent / "s.csv")
        code, out, err = said(*arguments)
        assert (code, out) == (0, f"{run.parent / 's.csv'}: 1 image, 0 objects\n"), "as the run's own submission"
        assert "note: 1 test image handed in, not 1 other of the run (val)" in err
        assert said(*arguments, "--coco", run / "coco/test.json")[:2] == (
            0,
            f"{run.parent / 's.csv'}: 1 image, 0 objects\n",
        )
        write_png(run.parent / "test/HEK/1.png", np.zeros((3, 5, 3), np.uint8))
        assert said(*arguments, "--images", run.parent / "test")[0] == 0
        assert (run.parent / "s.csv").read_text().splitlines()[1:] == ["1,1 2 6 2", "1,4 2 9 2"], (
            "called as the picture is"
        )
        write_png(run.parent / "test/HEK/1.png", np.zeros((6, 10, 3), np.uint8))
        code, _, err = said(*arguments, "--images", run.parent / "test")
        assert code == 2 and "1 is 6 x 10 px, its cells were found in 3 x 5 px\npredict the original images" in err
        stage = {"status": "finished", "config": {"scale": 0.5}}
        write_json(run / "manifest.json", {"format": 1, "stages": {"01_convert": stage}, "attempts": {}})
        code, _, err = said(*arguments)
        assert code == 2 and "0.5 times the original size (convert.scale)\npredict the original images" in err


class TestScoreSides:
    def test_every_convention_with_its_reason(self, truth):
        from cellkit.scores.conventions import find_conventions

        result = score_sides(read_side(truth), read_side(truth), bootstrap=50)
        assert set(result["conventions"]) == set(find_conventions())
        assert all(told["score"] == pytest.approx(1.0) for told in result["conventions"].values())
        assert (result["images"], result["truth_cells"], result["found_cells"]) == (2, 3, 3)
        assert json.loads(json.dumps(result, allow_nan=False))["conventions"]["kaggle"]["interval"] == [1.0, 1.0]
        text = scores_to_text(result, "truth.json", "found.json")
        assert "2 images, 3 true cells, 3 found" in text
        assert "kaggle        1.000  [1.000, 1.000]   MAP IoU" in text

    def test_cells_that_no_score_ranks(self, truth):
        sides = match_sides(read_side(truth), read_side(truth))
        told = score_sides(*sides, ["coco", "voc", "pq"], bootstrap=0)["conventions"]
        assert ["same score" in told[name]["why"] for name in ("coco", "voc", "pq")] == [True, True, False]
        ranked = replace(sides[1], instances=[A.with_scores([0.5, 0.9]), B])
        assert "same score" not in score_sides(sides[0], ranked, ["coco"], bootstrap=0)["conventions"]["coco"]["why"]

    def test_parts(self, truth):
        side = read_side(truth)
        result = score_sides(side, side, ["kaggle"], by="cell_type", bootstrap=0)
        assert list(result["by"]["cell_type"]) == ["N2a", "mixed"]
        assert "N2a" in scores_to_text(result, "t", "p")
        by_class = score_sides(side, side, ["kaggle"], by="class_name", bootstrap=0)["by"]["class_name"]
        assert by_class["HEK"]["truth_cells"] == 1
        assert by_class["N2a"]["truth_cells"] == 2

    def test_parts_nobody_tells(self, truth, tmp_path):
        side = read_side(labels_at(tmp_path / "labels", a=A))
        for by, problem in (
            ("cell_type", "has its cell_type"),
            ("class_name", "share no class"),
            ("sise", "by is 'sise'"),
        ):
            with pytest.raises(UserError, match=problem):
                score_sides(side, side, ["kaggle"], by=by, bootstrap=0)

    def test_a_crowd_absorbs_detections_for_coco_alone(self, tmp_path):  # fault 32
        picture = cells("10022", "10022", "00000")
        content = {
            "images": [{"id": 1, "file_name": "a.png", "height": 3, "width": 5}],
            "categories": [{"id": 1, "name": "cell"}],
            "annotations": [
                {"id": k, "image_id": 1, "category_id": 1, "segmentation": rle, "iscrowd": k - 1}
                for k, rle in enumerate(picture.to_coco_rle(), 1)
            ],
        }
        truth = read_side(write_json(tmp_path / "truth.json", content))
        assert (truth.cells, [len(crowd) for crowd in truth.crowd]) == (1, [1])
        found = read_side(labels_at(tmp_path / "labels", a=picture))
        told = score_sides(*match_sides(truth, found), ["kaggle", "coco"], bootstrap=0)["conventions"]
        assert told["coco"]["score"] == pytest.approx(1.0)
        assert told["kaggle"]["score"] == 0.5


class TestCompareModels:
    """Fifty images of ten cells: one model finds seven of ten, the other nine."""

    @pytest.fixture
    def models(self, tmp_path):
        widths = [2, 3, 4, 2, 3, 4, 2, 3, 4, 3]  # px
        whole = Instances.from_labels(np.tile(np.repeat(np.arange(1, 11), widths), (2, 1)))
        records = [ImageRecord(f"i{k:02d}", f"i{k:02d}.png", 2, 30) for k in range(50)]
        truth = write_coco(tmp_path / "truth.json", records, [whole.with_classes(1)] * 50, ("cell",))
        rng, paths = np.random.default_rng(0), [truth]
        for name, share in (("base", 0.7), ("tuned", 0.9)):
            found = [whole[rng.random(10) < share].with_classes(1) for _ in records]
            paths.append(write_results(tmp_path / f"{name}.json", range(1, 51), found))
        return paths

    def test_the_sentence(self, models):
        truth, base, tuned = (
            read_side(path, of=None if k == 0 else read_side(models[0])) for k, path in enumerate(models)
        )
        told = compare_models(*match_sides(truth, tuned)[:1], base, tuned)
        low, high = told["interval"]
        assert told["sentence"] == (
            f"tuned.json is better than base.json by {told['difference']:.3f} [{low:.3f}, {high:.3f}], n = 50 images"
        )
        assert 0 < low < told["difference"] < high < 0.4
        assert told["difference"] == pytest.approx(kaggle_of(truth, tuned) - kaggle_of(truth, base))
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        assert compare_models(truth, tuned, base)["sentence"].startswith("base.json is worse than tuned.json by 0.")
        assert "cannot be told apart: 0.000 [0.000, 0.000], n = 50" in compare_models(truth, base, base)["sentence"]

    def test_on_the_command_line(self, models, capsys):
        truth, base, tuned = map(str, models)
        arguments = ["score", truth, tuned, "--against", base, "--convention", "kaggle", "--by", "size"]
        assert main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].startswith("MAP IoU (kaggle): tuned.json is better than base.json by 0.")
        assert lines[-1].endswith("n = 50 images")
        assert [line.split()[0] for line in lines if " true, " in line] == ["small", "medium", "large"]
        assert main([*arguments, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)["against"]
        assert (told["other"], told["images"], lines[-1]) == (base, 50, f"MAP IoU (kaggle): {told['sentence']}")

    def test_images_that_one_of_three_lacks(self, models, tmp_path):
        truth = read_side(models[0])
        found = read_side(models[2], of=truth)
        folder = labels_at(tmp_path / "labels", **{f"i{k:02d}": truth.instances[k] for k in range(1, 50)})
        with pytest.raises(UserError, match=r"1 of the 50 images of .* are not in .*labels \(i00\)"):
            compare_models(truth, read_side(folder), found)
        told = compare_models(truth, read_side(folder), found, common=True)
        assert (told["images"], told["sentence"].split(" by ")[0]) == (49, "tuned.json is worse than labels")

    def test_one_image_shows_nothing(self, truth):
        side = read_side(truth).subset([0])
        told = compare_models(side, side, side)
        assert told["interval"] == [None, None]
        assert told["sentence"].endswith("is 0.000; 1 image: too few to say which is better")


class TestForms:
    @pytest.mark.parametrize(
        ("name", "stem"), [("_masks.tif", "_masks"), ("a_MASKS.png", "a"), (".a", ".a"), ("x\\y.png", "y")]
    )
    def test_plain_stem(self, name, stem):
        assert plain_stem(name) == stem


# ---- proposals are no truth ------------------------------------------------------------------------------------------
def marked_coco(path, makers):
    """Write one square cell in each of so many images, and who made it."""
    labels = np.zeros((8, 9), int)
    labels[2:6, 2:6] = 1
    records = [ImageRecord(f"i{k}", f"images/i{k}.png", 8, 9) for k in range(len(makers))]
    cells = [Instances.from_labels(labels, class_ids=[1])] * len(makers)
    return write_coco(path, records, cells, ["cell"], made_by=makers)


def test_proposals_are_refused_as_truth_and_left_out_where_some_images_were_corrected(tmp_path, said):
    found = marked_coco(tmp_path / "found.json", [""] * 3)
    code, out, err = said("score", marked_coco(tmp_path / "all.json", ["proposed"] * 3), found)
    assert (code, out) == (2, "") and "all.json holds proposals, no truth: accuracy cannot be measured" in err
    half = marked_coco(tmp_path / "half.json", ["proposed", "corrected", ""])
    code, out, _ = said("score", half, found, "--against", found)
    assert (
        code == 0
        and "2 images, 2 true cells, 2 found" in out
        and "not scored, as a model proposed the labels: 1 more image, i0" in out
    )
    told = json.loads(said("score", half, found, "--json")[1])
    assert (told["images"], told["not_scored"]) == (2, {"proposed": ["i0"]})
    assert "not_scored" not in json.loads(said("score", found, half, "--json")[1]), "a prediction may be a proposal"


@pytest.mark.parametrize("form", ["tif", "png", "seg", "roi"])
def test_proposals_written_for_a_label_tool_stay_proposals_until_somebody_changes_them(tmp_path, said, form):
    from conftest import write_png

    marked, out = marked_coco(tmp_path / "m.json", ["proposed", "corrected", ""]), tmp_path / "out"
    for k in range(3):
        write_png(tmp_path / f"images/i{k}.png", np.zeros((8, 9, 3), np.uint8))
    pictures = ("--images", tmp_path / "images")
    code, _, err = said("labels", marked, "-o", out, "--format", form, *pictures)
    assert code == 0 and "1 image holds what a model proposed, no truth" in err
    assert said("coco", out, "-o", tmp_path / "2.json", *pictures)[0] == 0
    assert [i.get("labels") for i in read_json(tmp_path / "2.json")["images"]] == ["proposed", "corrected", None]
    if form in ("tif", "png"):
        code, told, _ = said("score", out, out)
        assert code == 0 and "labels: 1 more image, i0" in told
        assert said("labels", marked_coco(tmp_path / "n.json", ["proposed"]), "-o", out, "--format", form)[0] == 0
        assert "labels: 1 more image, i0" in said("score", out, out)[1], "what is known of the other files is kept"
        assert read_side(out).made_by == ["proposed", "corrected", ""]
    if form == "tif":
        write_labels(out / "i0.tif", np.eye(8, 9, dtype=np.int32))
        assert read_side(out).made_by[0] == "", "changed by somebody"
    none = said("labels", marked_coco(tmp_path / "o.json", [""]), "-o", tmp_path / "plain", "--format", "tif")
    assert "proposed" not in none[2] and not (tmp_path / "plain/labels.json").exists()


def test_the_label_folder_of_a_run_says_what_is_proposed_and_keeps_overlaps(tmp_path):
    from cellkit.labelling.annotate import Labelled, write_chosen

    masks = np.zeros((2, 8, 9), bool)
    masks[0, :, :5], masks[1, 2:4, 2:4] = True, True
    both = Instances.from_masks(masks, (8, 9))
    chosen = [Labelled("a", both.paint(), "truth", both), Labelled("b", both[:1].paint(), "proposed")]
    side = read_side(write_chosen(chosen, tmp_path / "labels", tmp_path / "labels.csv"))
    assert (side.made_by, side.instances[0]) == (["truth", "proposed"], both)
    result = score_sides(*match_sides(side, side), bootstrap=0)
    assert (result["images"], result["truth_cells"]) == (1, 2)
    assert result["conventions"]["kaggle"]["score"] == 1


def test_proposals_stay_proposals_on_the_way_through_coco(tmp_path, said):
    from cellkit.labelling.annotate import Labelled, write_chosen

    labels = np.pad(np.ones((4, 4), np.int32), 2)
    chosen = [Labelled("a", labels, "proposed"), Labelled("b", labels, "corrected"), Labelled("c", labels, "proposed")]
    folder = write_chosen(chosen, tmp_path / "labels", tmp_path / "labels.csv")
    write_labels(folder / "c.tif", labels.T[::-1] * 3)  # changed by hand since
    for source, out in ((folder, tmp_path / "1.json"), (tmp_path / "1.json", tmp_path / "2.json")):
        assert said("coco", source, "-o", out)[0] == 0
        images = read_json(out)["images"]
        assert [image.get("labels") for image in images] == ["proposed", "corrected", None]


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
