"""The two sides of a score, from whatever they are stored in."""

import json
from dataclasses import replace

import numpy as np
import pytest
from compare_cases import CLASSES, A, B, cells, kaggle_of, labels_at, truth  # noqa: F401
from conftest import write_png

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord, write_records
from cellkit.commands.comparison import compare_models, score_sides, scores_to_text
from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.files import read_json, write_json
from cellkit.formats.any import read_side
from cellkit.formats.coco import write_coco, write_results
from cellkit.formats.label_images import write_labels
from cellkit.formats.sides import match_sides


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

    def test_a_training_image_annotated_in_part_adds_no_class(self, run, said, tmp_path):
        partly = Instances.from_labels(np.array([[1, 1, -1, 2, 2]] * 3), [1, 2])
        record = ImageRecord("HEK_0", "images/HEK_0.png", 3, 5, "", "HEK", "", "train")
        write_coco(run / "coco/train.json", [record], [partly], CLASSES, ids=[1])
        side = read_side(run / "predictions/x.json")
        assert side.classes == CLASSES, "what is not annotated is of no class"
        code, *_ = said("fuse", run / "predictions/x.json", run / "predictions/x.json", "-o", tmp_path / "both.json")
        assert code == 0

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

    def test_a_crowd_absorbs_detections_whatever_the_convention(self, tmp_path):  # fault 32
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
        assert (truth.cells, [cells.unknown_px for cells in truth.instances]) == (1, [4])
        found = read_side(labels_at(tmp_path / "labels", a=picture))
        told = score_sides(*match_sides(truth, found), bootstrap=0)
        assert {name: one["score"] for name, one in told["conventions"].items()} == dict.fromkeys(
            told["conventions"], pytest.approx(1.0)
        )
        wanted = "1 image is annotated in part (73 % known); found mostly elsewhere and not counted: 1 cell"
        assert told["in_part"] == wanted and wanted in scores_to_text(told, "truth", "found")


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


def test_images_that_dsb2018_does_not_score_are_left_out_of_both_sides(tmp_path, said):
    head, rows = "ImageId,EncodedPixels,Height,Width,Usage\n", "a,4 2,3,4,Public\nb,,3,4,Private\n"
    table = tmp_path / "stage2_solution_final.csv"
    table.write_text(f"{head}{rows}x,1 1,3,4,Ignored\ny,1 1,3,4,Ignored\n")
    for name in "abxy":
        write_png(tmp_path / f"images/{name}.png", np.zeros((3, 4, 3), np.uint8))
    for k, extra in enumerate(("", "x,1 2\n", "x,\ny,\n")):
        (tmp_path / f"{k}.csv").write_text(f"ImageId,EncodedPixels\na,4 2\nb,\n{extra}")
        images = ("--images", tmp_path / "images") if k == 2 else ()
        for sides in ((table, tmp_path / f"{k}.csv"), (tmp_path / f"{k}.csv", table)):
            flags = ("--profile", "dsb2018", "--convention", "kaggle", "--bootstrap", "0", *images)
            code, out, err = said("score", *sides, *flags)
            assert code == 0 and "kaggle        1.000" in out and "2 images of" in err and "(Usage: Ignored)" in err
    table.write_text(f"{head}x,1 1,3,4,Ignored\n")
    with pytest.raises(UserError, match="no image that is scored"):
        read_side(table)
