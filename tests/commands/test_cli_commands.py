"""The commands one by one: inspect, convert, predict, score, coco, labels, submit, run, doctor."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from cli_cases import refused  # noqa: F401
from conftest import write_png

from cellkit.cells.instances import Instances
from cellkit.formats.coco import write_coco, write_results
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels, write_labels


@pytest.fixture(scope="module")
def pictures(drawn, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for record in drawn.records[:3]:
        shutil.copy(drawn.root / record.path, folder / f"{record.image_id}.png")
    return folder


@pytest.fixture(scope="module")
def truth(drawn, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("truth") / "truth.json"
    return write_coco(path, drawn.records[:3], drawn.instances[:3], drawn.classes)


@pytest.fixture
def stack(tmp_path) -> Path:
    metadata = {"axes": "CYX", "Channel": {"Name": ["actin", "DAPI"]}}
    planes = np.random.default_rng(0).integers(0, 4000, (2, 40, 50)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "cells.ome.tif", planes, metadata=metadata)
    return tmp_path / "cells.ome.tif"


class TestInspectAndConvert:
    def test_a_file(self, said, stack):
        code, out, err = said("inspect", stack, "--json")
        told = json.loads(out)
        assert (code, err) == (0, "")
        assert (told["kind"], told["axes"], told["shape"], told["channels"]) == (
            "file",
            "CYX",
            [2, 40, 50],
            ["actin", "DAPI"],
        )
        assert "channels: 0 actin, 1 DAPI" in said("inspect", stack)[1]

    def test_a_data_set_and_a_coco_file(self, said, truth, pictures):
        told = json.loads(said("inspect", pictures, "--json")[1])
        assert (told["kind"], told["images"], told["objects"]) == ("folder", 3, 0)
        told = json.loads(said("inspect", truth, "--json")[1])
        assert (told["kind"], told["images"], sorted(told["classes"])) == ("coco", 3, ["HEK", "N2a"])

    def test_a_layout_is_that_of_a_folder(self, refused, stack):
        assert "is no folder" in refused("inspect", stack, "--source", "labelme")

    def test_convert(self, said, refused, stack, tmp_path):
        code, out, _ = said(
            "convert",
            stack,
            "-o",
            tmp_path / "out",
            "--nuclei",
            "Hoechst",
            "--nuclei",
            "DAPI",
            "--cytoplasm",
            "0",
            "--z",
            "mean",
        )
        assert (code, out) == (0, f"{tmp_path / 'out'}: 1 picture\n")
        assert (tmp_path / "out/cells.png").is_file()
        assert "0 actin, 1 DAPI; neither nuclei nor cytoplasm is named" in refused(
            "convert", stack, "-o", tmp_path / "out"
        )
        assert "'GFP' is no channel of cells.ome.tif, which has" in refused(
            "convert", stack, "-o", tmp_path / "o", "--nuclei", "GFP"
        )

    def test_convert_sets_bad_files_aside(self, said, stack, tmp_path):
        (tmp_path / "cut.tif").write_bytes(stack.read_bytes()[:300])
        arguments = ("convert", tmp_path, "-o", tmp_path / "out", "--nuclei", "1")
        code, out, err = said(*arguments)
        assert (code, out) == (3, f"{tmp_path / 'out'}: 1 picture\n")
        assert "skipped:" in err and "cut.tif" in err
        assert said(*arguments, "--allow-skips")[0] == 0


class TestPredictAndScore:
    def test_predict_then_score(self, said, drawn, pictures, truth, tmp_path):
        out = tmp_path / "out.json"
        code, text, _ = said(
            "predict", "threshold", pictures, "-o", out, "--labels", tmp_path / "labels", "--diameter", "30"
        )
        assert code == 0
        coco = read_coco(out)
        assert text == f"{out}: 3 images, {sum(map(len, coco.instances))} cells\n"
        code, text, err = said("score", truth, out, "--json", "--bootstrap", "100")
        assert (code, text.count("\n"), err) == (0, 1, "")
        told = json.loads(text)
        assert told["images"] == 3
        assert 0.1 < told["conventions"]["kaggle"]["score"] < 1
        low, high = told["conventions"]["kaggle"]["interval"]
        assert low <= told["conventions"]["kaggle"]["score"] <= high
        assert set(told["conventions"]["kaggle"]["by_threshold"]) == {f"{t / 100:.2f}" for t in range(50, 100, 5)}
        again = json.loads(said("score", truth, tmp_path / "labels", "--json", "--bootstrap", "100")[1])
        assert again["conventions"]["kaggle"] == told["conventions"]["kaggle"], "label images say the same"

    def test_score_in_words(self, said, truth):
        code, out, _ = said(
            "score", truth, truth, "--convention", "kaggle, coco", "--by", "cell_type", "--bootstrap", "10"
        )
        assert code == 0
        assert "kaggle        1.000  [1.000, 1.000]" in out
        assert "coco" in out and "stardist" not in out
        assert "HEK" in out and "N2a" in out

    def test_score_results_and_csv(self, said, drawn, truth, tmp_path):
        results = write_results(tmp_path / "r.json", [1, 2, 3], drawn.instances[:3])
        code, out, _ = said("submit", results, "--coco", truth, "--profile", "sartorius", "-o", tmp_path / "s.csv")
        assert (code, out[: len(str(tmp_path))]) == (0, str(tmp_path))
        scores = []
        for found in ((results,), (tmp_path / "s.csv", "--profile", "sartorius")):
            code, out, _ = said("score", truth, *found, "--json", "--convention", "kaggle", "--bootstrap", "0")
            scores.append(json.loads(out)["conventions"]["kaggle"]["score"])
        assert scores == [1.0, 1.0]
        code, out, _ = said("score", tmp_path / "s.csv", truth, "--profile", "sartorius", "--json", "--bootstrap", "0")
        assert json.loads(out)["conventions"]["kaggle"]["score"] == 1.0, "either side may be the CSV"

    def test_images_that_do_not_match(self, refused, said, truth, tmp_path):
        write_labels(tmp_path / "labels/0.tif", np.zeros((128, 128), np.int32))
        text = refused("score", truth, tmp_path / "labels")
        assert "2 of the 3 images of" in text and "(1, 2)" in text and "--common" in text
        assert said("score", truth, tmp_path / "labels", "--common", "--bootstrap", "0")[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (("--convention", "kagle"), "no convention 'kagle' (did you mean 'kaggle'?)"),
            (("--by", "colour"), "by is 'colour'"),
        ],
    )
    def test_names_are_checked(self, refused, truth, arguments, problem):
        assert problem in refused("score", truth, truth, "--bootstrap", "0", *arguments)

    def test_bad_images_end_with_3(self, said, pictures, tmp_path):
        shutil.copy(pictures / "0.png", tmp_path / "0.png")
        (tmp_path / "1.png").write_bytes(b"\x89PNG")
        arguments = ("predict", "threshold", tmp_path, "-o", tmp_path / "out/o.json")
        code, out, err = said(*arguments)
        assert (code, out.count("\n")) == (3, 1)
        assert f"skipped: {tmp_path / '1.png'}: 1.png cannot be read" in err
        assert said(*arguments, "--allow-skips")[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (("treshold", "{p}"), "did you mean 'threshold'"),
            (("threshold", "{p}/none"), "no file or folder at"),
            (("threshold", "{p}/*.jpg"), "no file matches"),
            (("threshold", "{e}"), "no image in the folder"),
            (("threshold", "{p}", "--diameter", "0"), "diameter_px is 0"),
            (("threshold", "{p}", "--diameter", "big"), "diameter_px is 'big'"),
            (("threshold", "{p}", "--set", "diameter=3"), "threshold has no setting 'diameter'"),
            (("threshold", "{p}", "--diameter", "9", "--set", "diameter_px=3"), "--diameter and --set diameter_px"),
            (("threshold", "{s}"), "0 actin, 1 DAPI; neither nuclei nor cytoplasm is named"),
            (("threshold", "{p}", "--z", "mean"), "neither nuclei nor cytoplasm is named"),
            (("threshold", "{p}", "-o", "{e}"), "is a folder"),
            (("threshold", "{p}", "-o", "{p}"), "would be written over the images"),
            (("threshold", "{s}", "--nuclei", "GFP"), "'GFP' is no channel of cells.ome.tif"),
            (("threshold", "{s}", "--nuclei", "1", "--z", "top"), "projection is 'top'"),
        ],
    )
    def test_predict_refuses(self, refused, pictures, stack, tmp_path, arguments, problem):
        (tmp_path / "empty").mkdir()
        given = [a.format(p=pictures, e=tmp_path / "empty", s=stack) for a in arguments]
        given += [] if "-o" in given else ["-o", tmp_path / "o.json"]
        assert problem in refused("predict", *given)
        assert not (tmp_path / "o.json").exists()

    def test_a_microscope_file_with_its_channels(self, said, stack, tmp_path):
        code, _, _ = said(
            "predict", "threshold", stack, "-o", tmp_path / "o.json", "--nuclei", "DAPI", "--percentiles", 1, 99
        )
        assert code == 0
        conversion = json.loads((tmp_path / "o.json").read_text())["info"]["conversion"]
        assert (conversion["channels"]["nuclei"], conversion["percentiles"]) == ("DAPI", [1.0, 99.0])

    def test_names_that_begin_with_a_dash(self, said, pictures, tmp_path, monkeypatch):  # fault 24
        monkeypatch.chdir(tmp_path)
        shutil.copy(pictures / "0.png", "-x.png")
        assert said("predict", "threshold", "-o", "out.json", "--", "-x.png")[0] == 0
        assert said("predict", "-o", "-y.json", "--", "threshold", "-x.png")[0] == 2, "an option's value needs ./"
        assert said("predict", "-o", "./-y.json", "--", "threshold", "-x.png")[0] == 0
        Path("-t.json").write_text(Path("-y.json").read_text().replace('"labels": "proposed"', '"labels": "corrected"'))
        assert said("score", "--bootstrap", "0", "--", "-t.json", "-y.json")[0] == 0
        assert said("inspect", "--", "-x.png")[0] == 0
        write_labels(Path("-labels/-x.tif"), np.eye(128, dtype=np.int32))
        assert said("coco", "-o", "c.json", "--", "-labels")[0] == 0


class TestForms:
    def test_coco_and_labels_are_each_others_inverse(self, said, drawn, pictures, tmp_path):
        painted = [cells.paint() for cells in drawn.instances[:3]]
        for record, labels in zip(drawn.records, painted, strict=False):
            write_labels(tmp_path / "labels" / f"{record.image_id}.tif", labels)
        arguments = ("coco", tmp_path / "labels", "-o", tmp_path / "c.json", "--images", pictures, "--class", "HEK")
        assert said(*arguments)[0] == 0
        coco = read_coco(tmp_path / "c.json")
        assert coco.classes == ("HEK",)
        assert [record.path for record in coco.records] == ["0.png", "1.png", "2.png"]
        code, out, _ = said("labels", tmp_path / "c.json", "-o", tmp_path / "again")
        assert (code, out) == (0, f"{tmp_path / 'again'}: 3 label images\n")
        for record, labels in zip(drawn.records, painted, strict=False):
            assert np.array_equal(read_labels(tmp_path / "again" / f"{record.image_id}.tif"), labels)

    def test_submissions_have_no_overlap(self, said, tmp_path, drawn):
        both = Instances.from_masks([np.ones((2, 5), bool), np.eye(2, 5) > 0], (2, 5), scores=[0.5, 0.9])
        record = drawn.records[0].__class__("a", "a.png", 2, 5)
        write_coco(tmp_path / "p.json", [record], [both], (), with_scores=True)
        code, out, err = said("submit", tmp_path / "p.json", "--profile", "dsb2018", "-o", tmp_path / "s.csv")
        assert code == 0 and "1 image, 2 objects" in out
        assert "submit: 1 cell of 1 image lost pixels to higher scores (a)" in err
        assert (tmp_path / "s.csv").read_text().splitlines() == ["ImageId,EncodedPixels", "a,2 2 5 6", "a,1 1 4 1"]

    def test_every_test_image_needs_a_prediction(self, refused, truth, pictures, tmp_path):
        shutil.copytree(pictures, tmp_path / "test")
        shutil.copy(pictures / "0.png", tmp_path / "test/9.png")
        arguments = ("submit", truth, "--profile", "sartorius", "-o", tmp_path / "s.csv", "--images", tmp_path / "test")
        assert "1 test image without prediction, 0 predictions of none, e.g. 9" in refused(*arguments)
        assert not (tmp_path / "s.csv").exists()

    def test_check_submission(self, said, tmp_path):
        write_png(tmp_path / "test/a.png", np.zeros((2, 5, 3), np.uint8))
        (tmp_path / "s.csv").write_text("id,predicted\na,1 2\n")
        arguments = ("check-submission", tmp_path / "s.csv", "--profile", "sartorius")
        assert said(*arguments)[:2] == (
            0,
            f"{tmp_path / 's.csv'}: valid (ids, bounds, pixel order and picture size are not checked without --images)\n",
        )
        code, out, err = said(*arguments, "--images", tmp_path / "test", "--json")
        assert (code, json.loads(out)["valid"], err) == (0, True, "")
        (tmp_path / "s.csv").write_text("id,predicted\na,9 9\nb,\n")
        code, out, err = said(*arguments, "--images", tmp_path / "test", "--json")
        told = json.loads(out)
        assert (code, told["valid"], err) == (2, False, "")
        assert [problem["line"] for problem in told["problems"]] == [2, 3]
        assert "2 problems\n  line 2: " in said(*arguments, "--images", tmp_path / "test")[1]


class TestCheckAndDoctor:
    def test_a_run_that_never_ran(self, said, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.yaml").write_text("name: mine\n")
        (tmp_path / "runs/mine").mkdir(parents=True)
        code, out, err = said("check", "runs/mine", "mine.yaml", "--json")
        told = json.loads(out)
        assert (code, told["fresh"], err) == (0, False, "")
        assert [stage["state"] for stage in told["stages"]] == ["missing"] * 6
        assert said("check", "runs/mine", "mine.yaml")[1].splitlines()[0] == "missing  01_convert  (never run)"

    def test_doctor(self, said):
        code, out, err = said("doctor", "--json")
        told = json.loads(out)
        assert (code, told["ok"], out.count("\n"), err) == (0, True, 1, "")
        assert {item["name"] for item in told["backends"]} >= {"threshold", "cellpose_unet", "maskrcnn_torchvision"}
