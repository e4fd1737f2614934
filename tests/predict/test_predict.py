"""Any model on any images: found by name, streamed, resumed after a kill, bad images skipped."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import convert_file, write_png
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cellkit.cells.instances import Instances
from cellkit.cells.records import write_records
from cellkit.cells.resize import fit_to
from cellkit.commands.main import main
from cellkit.config.sections import ConvertConfig, FinetuneConfig, LabelConfig, MaskrcnnConfig
from cellkit.errors import UserError
from cellkit.fetch.find import find_weights
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels, write_labels
from cellkit.microscope.convert import Conversion
from cellkit.models import backend_names, get_backend, weights
from cellkit.predict.files import predict_files, segmented
from cellkit.predict.images import Frame, Picture, convert_files, find_frames, find_images, read_picture
from cellkit.predict.model import checked_settings, find_model
from cellkit.run.folder import Run

THRESHOLD = find_model("threshold", {"diameter_px": 30})
CHANNELS = {"nuclei": "DAPI", "cytoplasm": "actin"}


@pytest.fixture(scope="module")
def folder(drawn, tmp_path_factory) -> Path:
    """Six pictures as notebook 01 writes them."""
    folder = tmp_path_factory.mktemp("pictures")
    for record in drawn.records:
        shutil.copy(drawn.root / record.path, folder / f"{record.image_id}.png")
    return folder


@pytest.fixture(scope="module")
def stack(drawn, tmp_path_factory) -> Path:
    """A two-channel OME-TIFF of two times and three planes: actin first, DAPI second."""
    planes = np.stack([drawn.image(0)[..., 1:3].transpose(2, 0, 1), drawn.image(1)[..., 1:3].transpose(2, 0, 1)])
    planes = (planes[:, :, None] * np.array([60, 200, 100])[None, None, :, None, None]).astype(np.uint16)
    path = tmp_path_factory.mktemp("stacks") / "plate.ome.tif"
    metadata = {
        "axes": "TCZYX",
        "Channel": {"Name": ["actin", "DAPI"]},
        "PhysicalSizeX": 0.5,
        "PhysicalSizeXUnit": "µm",
    }
    tifffile.imwrite(path, planes, metadata=metadata, photometric="minisblack")
    return path


@pytest.fixture(scope="module")
def unet(tmp_path_factory) -> Path:
    """A Cellpose U-Net of random numbers, with its card."""
    import torch

    from cellkit.models.unet_network import CellposeUNet

    torch.manual_seed(1)
    told = {
        "diameter_px": 28.0,
        "channels": "both",
        "flow_threshold": 0.3,
        "cellprob_threshold": 6.0,
        "min_area_px": 15,
    }
    path = tmp_path_factory.mktemp("unet") / "cellpose_tuned.safetensors"
    return weights.save_checkpoint(path, CellposeUNet().state_dict(), "cellpose_unet", config=told)


@pytest.fixture(scope="module")
def run_dir(drawn, unet, tmp_path_factory) -> Path:
    """A run folder with the stages, outputs and settings that predictions ask for."""
    root = tmp_path_factory.mktemp("runs") / "demo"
    run = Run(root)
    channels = {"channels": CHANNELS, "projection": 1, "percentiles": (1.0, 99.0), "scale": 0.5}
    stage = run.start("01_convert", ConvertConfig(**channels))
    for record in drawn.records:
        stage.path(record.path).write_bytes((drawn.root / record.path).read_bytes())
    stage.done(records=write_records(stage.path("records.csv"), drawn.records), images=stage.path("images"))
    stage = run.start("02_label_with_cellpose", LabelConfig(diameter_px=33.0, min_area_px=20))
    told = {"config": {"diameter_px": 33.0, "min_area_px": 20}}
    floor = weights.save_checkpoint(stage.folder / "threshold.safetensors", {}, "threshold", **told)
    stage.done(labels=write_records(stage.path("labels.csv"), []), threshold_checkpoint=floor)
    stage = run.start("03_finetune_cellpose", FinetuneConfig())
    tuned = weights.copy_checkpoint(unet, stage.folder / "cellpose_tuned")
    base = weights.copy_checkpoint(find_weights("starter"), stage.folder / "cellpose_base")
    stage.done(cellpose_checkpoint=base, cellpose_base_checkpoint=base, cellpose_tuned_checkpoint=tuned)
    stage = run.start("05_train_maskrcnn", MaskrcnnConfig())
    told = {"classes": ("HEK", "N2a"), "config": {"score_threshold": 0.6, "fpn_channels": 16, "diameter_px": None}}
    path = weights.save_checkpoint(stage.folder / "maskrcnn.safetensors", {}, "maskrcnn_torchvision", **told)
    stage.done(maskrcnn_checkpoint=path)
    return root


def cells_of(path: Path) -> dict[str, Instances]:
    coco = read_coco(path)
    return dict(zip([record.image_id for record in coco.records], coco.instances, strict=True))


class TestFindModel:
    def test_threshold_needs_no_file(self):
        assert (THRESHOLD.backend, THRESHOLD.checkpoint, THRESHOLD.classes) == ("threshold", None, ())
        assert THRESHOLD.config == {"diameter_px": 30.0}
        assert THRESHOLD.sha256 == ""

    def test_starter_ships_with_the_package(self):
        model = find_model("starter")
        assert (model.backend, model.conversion) == ("cellpose_unet", None)
        assert model.checkpoint == find_weights("starter")

    def test_a_file_brings_its_backend_classes_and_settings(self, unet):
        model = find_model(unet, {"min_area_px": 40})
        assert model.backend == "cellpose_unet"
        assert model.config["diameter_px"] == 28.0, "from the card"
        assert model.config["min_area_px"] == 40, "what is asked for wins"

    def test_a_file_without_card_is_a_published_cellpose(self, tmp_path):
        import torch

        torch.save({"a": torch.ones(1)}, tmp_path / "cyto3")
        model = find_model(tmp_path / "cyto3")
        assert model.backend == "cellpose_unet"
        with pytest.raises(UserError, match="no two-channel Cellpose U-Net"):
            model.load()

    def test_a_model_of_a_run_comes_with_the_runs_settings(self, run_dir):
        tuned, base = find_model(f"{run_dir}:cellpose_tuned"), find_model(f"{run_dir}:cellpose_base")
        assert tuned.checkpoint == run_dir / "03_finetune_cellpose/cellpose_tuned.safetensors"
        assert base.checkpoint == run_dir / "03_finetune_cellpose/cellpose_base.safetensors"
        assert base.config == find_model("starter").config != tuned.config, "each is read as its own card says"
        assert tuned.config["cellprob_threshold"] == 6.0
        kept = find_model(f"{run_dir}:cellpose")
        assert (kept.sha256, kept.config) == (base.sha256, base.config)
        maskrcnn = find_model(f"{run_dir}:maskrcnn", {"score_threshold": 0.3})
        assert (maskrcnn.classes, maskrcnn.config) == (("HEK", "N2a"), {"score_threshold": 0.3})
        floor = find_model(f"{run_dir}:threshold")
        assert floor.checkpoint == run_dir / "02_label_with_cellpose/threshold.safetensors"
        assert floor.config == {"diameter_px": 33.0, "min_area_px": 20}

    def test_a_model_of_a_run_comes_with_the_runs_conversion(self, run_dir):
        conversion = find_model(f"{run_dir}:threshold").conversion
        assert conversion == Conversion(CHANNELS, 1, (1.0, 99.0), 0.5, always=False, made=run_dir / "images")

    def test_a_run_whose_channels_were_colours_converts_pictures_too_but_its_own_not_twice(
        self, run_dir, tmp_path, capsys
    ):
        shutil.copytree(run_dir, tmp_path / "run")
        manifest = json.loads((tmp_path / "run/manifest.json").read_text())
        manifest["stages"]["01_convert"]["config"]["channels"] = {"nuclei": "blue", "cytoplasm": "red"}
        (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
        conversion = find_model(f"{tmp_path}/run:threshold").conversion
        assert conversion.always and "nuclei = blue, cytoplasm = red" in capsys.readouterr().err
        assert conversion.made_already(tmp_path / "run/images/a.png") and not conversion.made_already(
            tmp_path / "a.png"
        )

    def test_the_floor_of_a_run_is_at_its_own_diameter_unless_one_is_given(self, run_dir):
        given = find_model(f"{run_dir}:threshold", {"diameter_px": 41})
        assert (given.config["diameter_px"], given.own_px) == (41.0, True)
        assert not find_model(f"{run_dir}:threshold").own_px

    @pytest.mark.parametrize(
        ("spec", "problem", "remedy"),
        [
            ("startr", r"no weights 'startr' \(did you mean 'starter'\?\)", "RUN:NAME"),
            ("treshold", r"did you mean 'threshold'", "starter, cyto3, cyto2, cyto, nuclei"),
            ("none.safetensors", "no weights 'none.safetensors'", "the path of a checkpoint"),
            ("none/run:maskrcnn", "a run folder that is not there: none/run", "cellkit run CONFIG"),
            ("{run}:maskrcn", r"has no model 'maskrcn' \(did you mean 'maskrcnn'\?\)", "cellpose_tuned"),
            ("{run}", "is a folder", "RUN:NAME"),
        ],
    )
    def test_nothing_else_takes_its_place(self, run_dir, spec, problem, remedy):
        with pytest.raises(UserError, match=problem) as caught:
            find_model(spec.format(run=run_dir))
        assert len(str(caught.value).splitlines()) == 2
        assert remedy in str(caught.value)

    def test_a_checkpoint_that_was_changed_is_refused(self, run_dir, tmp_path):
        shutil.copytree(run_dir, tmp_path / "run")
        path = tmp_path / "run/03_finetune_cellpose/cellpose_tuned.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        with pytest.raises(UserError, match="is not as 03_finetune_cellpose left it"):
            find_model(f"{tmp_path}/run:cellpose_tuned")

    @pytest.mark.parametrize(
        ("backend", "key", "value", "problem"),
        [
            ("threshold", "diamter_px", 30, "has no setting 'diamter_px' .*did you mean 'diameter_px'"),
            ("threshold", "flow_threshold", 0.4, "threshold has no setting 'flow_threshold'"),
            ("cellpose_unet", "fpn_channels", 96, "has no setting"),
            ("cellpose_unet", "diameter_px", 0, "diameter_px is 0\ndiameter_px is a number >= 2 and <= 2000, or null"),
            ("cellpose_unet", "diameter_px", "big", "diameter_px is 'big'"),
            ("cellpose_unet", "diameter_px", True, "diameter_px is True"),
            ("cellpose_unet", "diameter_px", float("nan"), "diameter_px is nan"),
            ("cellpose_unet", "min_area_px", 1.5, "a whole number"),
            ("cellpose_unet", "channels", "red", "one of 'both', 'nuclei', 'cytoplasm'"),
            ("maskrcnn_torchvision", "score_threshold", 1.1, "a number >= 0 and <= 1"),
        ],
    )
    def test_settings_are_checked(self, backend, key, value, problem):
        with pytest.raises(UserError, match=problem):
            checked_settings(backend, {key: value})

    @pytest.mark.parametrize("name", backend_names())
    def test_every_backend_reads_with_its_settings(self, name):
        backend = get_backend(name)
        read = set(backend.Settings.model_fields) - {"precision"}  # it is how networks compute, not how they are read
        assert read <= set(backend.DEFAULTS)


class TestFindImages:
    def test_a_folder_with_all_below_it_sorted(self, tmp_path):
        for name in (
            "b.png",
            "a/images/2.tif",
            "a/1.JPG",
            ".hidden/x.png",
            "a/labels/1.tif",
            "b_masks.png",
            "note.txt",
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        assert [relative for _, relative in find_images([tmp_path])] == ["a/1.JPG", "a/images/2.tif", "b.png"]

    def test_files_patterns_and_nothing_twice(self, tmp_path):
        for name in ("p/a.png", "p/b.png", "p/q/c.png", "p/{x} é.png", "p/-y.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        names = lambda *named: [relative for _, relative in find_images([str(tmp_path / n) for n in named])]  # noqa: E731
        assert names("p/a.png", "p/[ab].png") == ["a.png", "b.png"]
        assert names("p/**/*.png") == ["-y.png", "a.png", "b.png", "q/c.png", "{x} é.png"]
        assert names("p/{x} é.png", "p/-y.png") == ["-y.png", "{x} é.png"]  # fault 24

    def test_brackets_of_a_folder_that_is_there_are_its_name(self, tmp_path):
        for name in ("plate [1]/a.png", "plate [1]/b/c.png", "w1/d.png", "w2/e.png", "f[1].png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        names = lambda name: [relative for _, relative in find_images([str(tmp_path / name)])]  # noqa: E731
        assert names("plate [1]/*.png") == ["a.png"] and names("plate [1]/**/*.png") == ["a.png", "b/c.png"]
        assert names("w[12]/*.png") == ["w1/d.png", "w2/e.png"]
        with pytest.raises(UserError, match=r"write \[\[\]1\] for a file"):
            names("f[1].p*g")

    @pytest.mark.parametrize(
        ("name", "problem"),
        [("", "no image in the folder"), ("x.png", "no file or folder at"), ("*.png", "no file matches")],
    )
    def test_nothing_there(self, tmp_path, name, problem):
        with pytest.raises(UserError, match=problem):
            find_images([str(tmp_path / name)])

    def test_results_are_no_input(self, tmp_path):
        for name in ("a.png", "out/a.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        assert [r for _, r in find_images([tmp_path], avoid=[tmp_path / "out"])] == ["a.png"]
        for name in ("a.bmp", "b.tif.gz"):  # beside a picture of the same name, and of a kind that is not read
            (tmp_path / name).write_bytes(b"x")
        aside = []
        assert [r for _, r in find_images([tmp_path], [tmp_path / "out"], aside)] == ["a.png"]
        for name in (
            "double_label.png",
            "a_masks.png",
            "out/b_masks.png",
            "runs/manifest.json",
            "runs/records.csv",
            "runs/b.png",
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        called = []
        assert [r for _, r in find_images([tmp_path], [tmp_path / "out"], called)] == ["a.png"]
        assert [Path(one.item).name for one in called if "called as a label image" in one.reason] == [
            "double_label.png"
        ]
        assert [(Path(one.item).name, one.reason.split("; ")[1][:6]) for one in aside] == [
            ("a.bmp", "export"),
            ("b.tif.gz", "unpack"),
        ]
        for name in ("a.bmp", "b.tif.gz"):
            (tmp_path / name).unlink()
        assert [r for _, r in find_images([tmp_path / "out"], avoid=[tmp_path / "out"])] == ["a.png"], (
            "it was asked for"
        )

    def test_ids_come_from_the_path_below_the_folder(self, folder, stack):
        frames, quarantined = find_frames([(folder / "0.png", "a/images/0.png"), (stack, "plate.ome.tif")])
        assert [frame.image_id for frame in frames] == ["a_0", "plate_t0", "plate_t1"]
        assert [(frame.scene, frame.time) for frame in frames] == [(0, 0), (0, 0), (0, 1)]
        assert quarantined == []

    def test_files_of_one_name_in_two_folders(self, folder, tmp_path):  # fault 23
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            shutil.copy(folder / "0.png", tmp_path / name / "1.png")
        frames, _ = find_frames(find_images([tmp_path / "a", tmp_path / "b"]))
        assert [frame.image_id for frame in frames] == ["a_1", "b_1"]

    def test_two_images_of_one_id(self, folder, stack, tmp_path):
        shutil.copy(folder / "0.png", tmp_path / "plate_t0.png")
        shutil.copy(stack, tmp_path / "plate.ome.tif")
        with pytest.raises(UserError, match="would both be image 'plate_t0'"):
            find_frames(find_images([tmp_path]))


class TestReadPicture:
    def test_colours_are_used_as_they_are(self, drawn, folder):
        frame = Frame(folder / "0.png", "0.png", "0")
        for conversion in (None, Conversion({"nuclei": "red"})):
            picture = read_picture(frame, conversion)
            assert np.array_equal(picture.image, drawn.image(0))
        assert read_picture(frame, Conversion({"nuclei": "green"}, always=True)).image[..., :2].max() == 0

    def test_a_microscope_file_is_converted_as_notebook_01_does(self, stack):
        frame = find_frames([(stack, "plate.ome.tif")])[0][1]
        how = Conversion(CHANNELS, "mean", (0.0, 100.0), 0.5)
        picture, expected = (
            read_picture(frame, how),
            convert_file(stack, Conversion(CHANNELS, "mean", (0.0, 100.0), 0.5))[1],
        )
        assert np.array_equal(picture.image, expected.image)
        assert picture.image.shape == (64, 64, 3)
        assert picture.file_shape == (128, 128)
        assert picture.channels == "red=;green=actin;blue=DAPI"
        assert picture.um_per_px == 0.5, "of the file, as the masks are"

    def test_unnamed_channels_are_named_in_the_refusal(self, stack):
        frame = find_frames([(stack, "plate.ome.tif")])[0][0]
        with pytest.raises(UserError, match=r"plate\.ome\.tif has 2 channels: 0 actin, 1 DAPI; neither") as caught:
            read_picture(frame, None)
        assert "--nuclei actin" in str(caught.value)

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_grey_is_no_nuclei_until_somebody_says_so(self, drawn, tmp_path, mode):
        Image.fromarray(drawn.image(0)[..., 2]).convert(mode).save(tmp_path / "g.png")
        frame = Frame(tmp_path / "g.png", "g.png", "g")
        with pytest.raises(UserError, match="neither nuclei nor cytoplasm is named"):
            read_picture(frame, None)
        shown = read_picture(frame, Conversion({"nuclei": "0"}, percentiles=(0, 100))).image
        assert shown[..., :2].max() == 0
        assert shown[..., 2].max() == 255

    def test_a_black_picture_is_a_picture(self, tmp_path):
        write_png(tmp_path / "black.png", np.zeros((9, 7, 3), np.uint8))
        assert read_picture(Frame(tmp_path / "black.png", "black.png", "black"), None).image.shape == (9, 7, 3)


class TestFitTo:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 99), by=st.integers(1, 4))
    def test_whole_factors_multiply_areas(self, seed, by):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 4, (5, 7))
        count = len(np.unique(labels[labels > 0]))
        found = Instances.from_labels(labels, rng.integers(0, 3, count), rng.random(count))
        large = fit_to(found, (5 * by, 7 * by))
        assert np.array_equal(large.areas_px, found.areas_px * by * by)
        assert np.array_equal(large.class_ids, found.class_ids)
        assert np.array_equal(large.scores, found.scores)
        assert fit_to(large, (5, 7)) == found

    def test_a_cell_smaller_than_a_pixel_goes_with_its_class_and_score(self):
        found = Instances.from_labels(np.array([[1, 2, 2, 3]]), [5, 6, 7], [0.1, 0.2, 0.3])
        small = fit_to(found, (1, 2))
        assert small.paint().tolist() == [[1, 2]]
        assert (small.class_ids.tolist(), small.scores.tolist()) == ([6, 7], [0.2, 0.3])


class TestSegmented:
    """A model that takes two images at a time, and fails on images whose first pixel is 9."""

    @staticmethod
    def segment(images):
        held = []
        for image in images:
            held.append(image)
            if len(held) == 2:
                if any(image[0, 0, 0] == 9 for image in held):
                    raise RuntimeError("no answer")
                yield from (Instances.empty(image.shape[:2]) for image in held)
                held = []
        if any(image[0, 0, 0] == 9 for image in held):
            raise RuntimeError("no answer")
        yield from (Instances.empty(image.shape[:2]) for image in held)

    @staticmethod
    def read(frame):
        if frame.image_id == "unreadable":
            raise UserError("cut short", "copy it again")
        image = np.full((2, 2 + len(frame.image_id), 3), 9 if "bad" in frame.image_id else 0, np.uint8)
        return Picture(image, image.shape[:2], "", np.nan)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.sampled_from(["good", "fine", "bad", "unreadable"]), max_size=7))
    def test_only_the_image_at_fault_is_lost(self, names):
        quarantined = []
        frames = [Frame(Path(name), name, name) for name in names]
        done = list(segmented(self.segment, frames, self.read, quarantined))
        assert [frame.image_id for frame, _, _ in done] == [name for name in names if name in ("good", "fine")]
        assert all(found.shape == picture.image.shape[:2] for _, picture, found in done)
        reasons = {"bad": "RuntimeError: no answer", "unreadable": "cut short; copy it again"}
        expected = sorted((name, reasons[name]) for name in names if name in reasons)
        assert sorted((item.item, item.reason) for item in quarantined) == expected

    def test_one_image_at_a_time(self):
        read = []
        stream = segmented(lambda images: (Instances.empty(i.shape[:2]) for i in images), [Frame(Path("a"), "a", "a")] * 3,
                           lambda frame: read.append(1) or self.read(frame), [])  # fmt: skip
        next(stream)
        assert len(read) == 1


class TestPredictFiles:
    def test_a_complete_coco_file(self, drawn, folder, tmp_path):
        done = predict_files(THRESHOLD, [folder], tmp_path / "out.json", tmp_path / "labels")
        assert (done.images, done.resumed, done.quarantined) == (6, 0, [])
        coco = read_coco(tmp_path / "out.json")
        assert [record.image_id for record in coco.records] == ["0", "1", "2", "3", "4", "5"]
        assert coco.ids == [1, 2, 3, 4, 5, 6]
        expected = list(THRESHOLD.load()(drawn.images()))
        for cells, wanted, record in zip(coco.instances, expected, coco.records, strict=True):
            assert np.array_equal(cells.paint(), wanted.paint())
            assert cells.scores == pytest.approx(wanted.scores, abs=1e-6)
            assert np.array_equal(read_labels(tmp_path / "labels" / f"{record.image_id}.tif"), wanted.paint())
        assert done.cells == sum(map(len, expected)) > 6
        opened = read_coco(tmp_path / "out.json", folder)
        assert np.array_equal(opened.image(3), drawn.image(3)), "file names start from the folder given"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["labels", "out.json"]

    def test_overlays_show_the_image_and_its_outlines(self, drawn, folder, tmp_path):
        predict_files(THRESHOLD, [folder / "0.png"], tmp_path / "out.json", overlays=tmp_path / "overlays")
        overlay = np.array(Image.open(tmp_path / "overlays/0.png").convert("RGB")).astype(int)
        by = overlay.shape[0] // 128
        assert overlay.shape == (128 * by, 128 * by, 3)
        assert by > 4, "small images are enlarged"
        assert (overlay[..., 0] > 200).mean() > 0.005, "the outlines: no red in the picture"
        inside = overlay[by // 2 :: by, by // 2 :: by]
        assert np.abs(inside - drawn.image(0).astype(int)).max(axis=2).astype(bool).mean() < 0.5, "the picture"

    def test_a_picture_of_a_few_pixels_among_good_ones(self, folder, tmp_path):
        write_png(tmp_path / "in/a.png", np.uint8([[[10, 120, 200]]]))
        shutil.copy(folder / "0.png", tmp_path / "in/b.png")
        done = predict_files(THRESHOLD, [tmp_path / "in"], tmp_path / "out.json", overlays=tmp_path / "overlays")
        assert done.images == 2 and np.array(Image.open(tmp_path / "overlays/a.png")).shape[:2] == (100, 100)

    def test_corrected_label_images_are_not_written_over(self, folder, tmp_path):
        again = lambda: predict_files(THRESHOLD, [folder / "0.png"], tmp_path / "out.json", tmp_path / "l")  # noqa: E731
        assert again().images == again().images == 1, "what cellkit wrote may be written again"
        labels = read_labels(tmp_path / "l/0.tif")
        write_labels(tmp_path / "l/0.tif", np.where(labels == 1, 0, labels))
        before = (tmp_path / "l/0.tif").read_bytes()
        with pytest.raises(UserError, match=r"0\.tif .* may hold corrections"):
            again()
        assert (tmp_path / "l/0.tif").read_bytes() == before

    def test_says_what_it_was_made_with(self, folder, tmp_path):
        predict_files(find_model("threshold", {"min_area_px": 30}), [folder / "0.png"], tmp_path / "out.json")
        info = json.loads((tmp_path / "out.json").read_text())["info"]
        assert (info["model"], info["settings"], info["conversion"]) == ("threshold", {"min_area_px": 30}, None)

    def test_annotations_are_numbered_and_categories_named(self, folder, tmp_path):
        predict_files(THRESHOLD, [folder / "0.png", folder / "1.png"], tmp_path / "out.json")
        content = json.loads((tmp_path / "out.json").read_text())
        assert [entry["id"] for entry in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        assert content["categories"] == [{"id": 1, "name": "unknown", "supercategory": "cell"}]
        assert {entry["image_id"] for entry in content["annotations"]} == {1, 2}

    def test_is_what_write_coco_would_write(self, folder, tmp_path):
        predict_files(THRESHOLD, [folder], tmp_path / "out.json")
        coco = read_coco(tmp_path / "out.json")
        write_coco(tmp_path / "again.json", coco.records, coco.instances, coco.classes, with_scores=True)
        a, b = (json.loads((tmp_path / name).read_text()) for name in ("out.json", "again.json"))
        assert [a[key] for key in ("images", "annotations", "categories")] == [
            b[key] for key in ("images", "annotations", "categories")
        ]

    def test_a_checkpoint_with_its_settings(self, folder, unet, tmp_path):
        done = predict_files(find_model(unet), [folder / "0.png"], tmp_path / "out.json")
        assert done.images == 1
        again = predict_files(find_model(unet), [folder / "0.png"], tmp_path / "again.json")
        assert (tmp_path / "out.json").read_bytes() == (tmp_path / "again.json").read_bytes()
        assert again.cells == done.cells

    @pytest.mark.filterwarnings("ignore:Sparse invariant checks")
    def test_the_shipped_weights_find_drawn_cells(self, drawn, folder, tmp_path):
        from cellkit.scores.iou import overlap_images
        from cellkit.scores.kaggle import kaggle

        predict_files(
            find_model("starter", {"diameter_px": 30}), [folder / "0.png", folder / "1.png"], tmp_path / "o.json"
        )
        found = read_coco(tmp_path / "o.json").instances
        assert kaggle(overlap_images(drawn.instances[:2], found), bootstrap=0)["by_threshold"]["0.50"] > 0.5

    def test_bad_images_are_set_aside_and_named(self, folder, tmp_path):  # faults 2, 3, 5
        for number in range(2):
            shutil.copy(folder / f"{number}.png", tmp_path / f"good{number}.png")
        (tmp_path / "cut.png").write_bytes((folder / "0.png").read_bytes()[:2000])
        (tmp_path / "empty.png").write_bytes(b"")
        (tmp_path / "text.tif").write_text("no image")
        (tmp_path / "zeiss.czi").write_bytes(b"ZISRAWFILE")
        done = predict_files(THRESHOLD, [tmp_path], tmp_path / "out/out.json")
        assert sorted(cells_of(tmp_path / "out/out.json")) == ["good0", "good1"]
        told = {Path(item.item).name: item.reason for item in done.quarantined}
        assert sorted(told) == ["cut.png", "empty.png", "text.tif", "zeiss.czi"]
        assert "Zeiss CZI" in told["zeiss.czi"]
        listed = json.loads((tmp_path / "out/out.json").read_text())["info"]["quarantined"]
        assert len(listed) == 4

    def test_what_is_known_of_a_file_is_said_and_what_is_left_of_it_named(self, folder, tmp_path, capfd):
        picture = np.array(Image.open(folder / "0.png"))[..., 2]
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(picture, resolution=(20000, 10000), resolutionunit=3, metadata=None)
            file.write(picture[::8, ::8], metadata=None)
        command = ["predict", "threshold", str(tmp_path / "a.tif"), "-o", str(tmp_path / "o.json"), "--nuclei", "0"]
        for _ in range(2):  # the second time it is taken up
            assert main(command) == 3
            err = capfd.readouterr().err
            assert "note: a: pixels are 0.5 um wide and 1 um high" in err
            assert "not read: a.tif: a page of 16 x 16 px is a preview" in err
        assert list(cells_of(tmp_path / "o.json")) == ["a"]

    def test_an_odd_zarr_is_named(self, folder, tmp_path):
        (tmp_path / "b.ngff/0").mkdir(parents=True)
        (tmp_path / "b.ngff/.zattrs").write_text("{}")
        (tmp_path / "b.ngff/0/0.0").write_bytes(b"II*\0")
        with pytest.raises(UserError, match="rename the folder to b.ngff.zarr"):
            predict_files(THRESHOLD, [tmp_path / "b.ngff"], tmp_path / "out/o.json")
        shutil.copy(folder / "0.png", tmp_path)
        outside = []
        assert [text for _, text in find_images([tmp_path], outside=outside)] == ["0.png"]
        assert "OME-Zarr by another name" in outside[0].reason

    def test_none_that_can_be_used_leaves_no_file(self, tmp_path):
        (tmp_path / "cut.png").write_bytes(b"\x89PNG")
        with pytest.raises(UserError, match=r"of 1 image none could be used; cut\.png cannot be read") as caught:
            predict_files(THRESHOLD, [tmp_path / "cut.png"], tmp_path / "out.json")
        assert len(str(caught.value).splitlines()) == 2
        assert not (tmp_path / "out.json").exists()

    def test_an_image_without_cells_is_an_image(self, tmp_path):  # fault 20
        write_png(tmp_path / "black.png", np.zeros((40, 30, 3), np.uint8))
        done = predict_files(THRESHOLD, [tmp_path / "black.png"], tmp_path / "out.json", tmp_path / "labels")
        assert (done.images, done.cells) == (1, 0)
        assert [len(cells) for cells in read_coco(tmp_path / "out.json").instances] == [0]
        assert read_labels(tmp_path / "labels/black.tif").shape == (40, 30)

    def test_a_runs_model_converts_new_files_as_the_run_did(self, run_dir, stack, tmp_path):
        model = find_model(f"{run_dir}:threshold")
        done = predict_files(model, [stack], tmp_path / "out.json", tmp_path / "labels")
        coco = read_coco(tmp_path / "out.json")
        assert [record.image_id for record in coco.records] == ["plate_t0", "plate_t1"]
        assert {cells.shape for cells in coco.instances} == {(128, 128)}, (
            "in the pixels of the file, not of the picture"
        )
        shown = convert_file(stack, Conversion(CHANNELS, 1, (1.0, 99.0), 0.5))
        expected = list(model.load()([made.image for made in shown]))
        assert done.cells == sum(map(len, expected)) > 4
        assert np.array_equal(coco.instances[0].areas_px, expected[0].areas_px * 4)

    def test_a_diameter_is_asked_for_in_pixels_of_the_files_whatever_the_run_scaled(
        self, run_dir, stack, folder, tmp_path, unet, capfd, monkeypatch
    ):
        """A stack that the run halves and a picture that it does not, in one command: each at the diameter asked for."""
        model = find_model(f"{run_dir}:threshold", {"diameter_px": 80})
        predict_files(model, [stack, folder / "0.png"], tmp_path / "out.json")
        found, threshold = cells_of(tmp_path / "out.json"), get_backend("threshold")
        at_px = lambda px: threshold.load(None, threshold.Settings(**model.config | {"diameter_px": px}))  # noqa: E731
        halved = convert_file(stack, Conversion(CHANNELS, 1, (1.0, 99.0), 0.5))[0].image
        at = {px: list(at_px(px)([halved]))[0] for px in (40.0, 80.0)}
        assert len(at[40.0]) != len(at[80.0]), "the diameter must matter for this to tell anything"
        assert len(found["plate_t0"]) == len(at[40.0])
        plain = list(at_px(80.0)([read_picture(find_frames([(folder / "0.png", "")])[0][0], None).image]))
        assert len(found["0"]) == len(plain[0])
        assert json.loads((tmp_path / "out.json").read_text())["info"]["settings"]["diameter_px"] == 80

        tenth = lambda checkpoint, shown, how: shown[0].shape[0] / 10  # noqa: E731
        monkeypatch.setattr("cellkit.models.cellpose_unet.estimate_diameter", tenth)
        capfd.readouterr()
        (whole, half) = (Conversion(CHANNELS, 1, always=True, scale=scale) for scale in (1.0, 0.5))
        for how in (whole, half):
            predict_files(
                find_model(unet, {"diameter_px": "auto"}), [stack], tmp_path / f"{how.scale}.json", conversion=how
            )
        told = [float(px) for px in re.findall(r"estimated as ([0-9.]+) px", capfd.readouterr().err)]
        assert told == [12.8, 12.8], "of the same cells in the same files"

    def test_a_diameter_is_estimated_once_from_a_few(self, folder, tmp_path, unet, capfd):
        predict_files(find_model(unet, {"diameter_px": "auto"}), [folder / "0.png"], tmp_path / "out.json")
        estimated = json.loads((tmp_path / "out.json").read_text())["info"]["settings"]["diameter_px"]
        assert f"diameter estimated as {estimated} px" in capfd.readouterr().err
        with pytest.raises(UserError, match="threshold cannot estimate a diameter"):
            predict_files(find_model("threshold", {"diameter_px": "auto"}), [folder], tmp_path / "out.json")

    def test_images_are_never_written_over(self, folder, tmp_path):
        shutil.copy(folder / "0.png", tmp_path / "0.png")
        for places in ({"labels": tmp_path}, {"overlays": tmp_path}):
            with pytest.raises(UserError, match="would be written over the images"):
                predict_files(THRESHOLD, [tmp_path / "0.png"], tmp_path / "out.json", **places)
        with pytest.raises(UserError, match="would be written over the images"):
            predict_files(THRESHOLD, [tmp_path / "0.png"], tmp_path / "0.png")
        assert (tmp_path / "0.png").read_bytes() == (folder / "0.png").read_bytes()

    def test_places_that_cannot_be_written(self, folder, tmp_path):  # fault 51
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be written"):
            predict_files(THRESHOLD, [folder], tmp_path / "file/out.json")
        with pytest.raises(UserError, match="is a folder"):
            predict_files(THRESHOLD, [folder], tmp_path)
        with pytest.raises(UserError, match=r"'.*out\.csv' does not end with \.json"):
            predict_files(THRESHOLD, [folder], tmp_path / "out.csv")

    def test_a_prediction_of_nothing_leaves_nothing(self, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.png").write_bytes(b"torn")
        with pytest.raises(UserError):
            predict_files(THRESHOLD, [tmp_path / "in"], tmp_path / "out.json")
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def test_one_writer(self, folder, tmp_path):  # fault 50
        (tmp_path / "out.json.parts").mkdir()
        with FileLock(tmp_path / "out.json.parts/.lock"), pytest.raises(UserError, match="by another process"):
            predict_files(THRESHOLD, [folder], tmp_path / "out.json")
        assert predict_files(THRESHOLD, [folder], tmp_path / "out.json").images == 6


class TestResume:
    def test_killed_and_repeated_is_the_same_as_not_killed(self, drawn, tmp_path):  # fault 39
        for k in range(40):
            write_png(tmp_path / f"in/{k:02d}.png", drawn.image(k % 6))
        out, parts = tmp_path / "out.json", tmp_path / "out.json.parts"
        command = [sys.executable, "-m", "cellkit", "predict", "threshold", str(tmp_path / "in"), "--diameter", "30"]
        process = subprocess.Popen([*command, "-o", str(out), "--labels", str(tmp_path / "labels")])
        until = time.monotonic() + 60
        while len(list(parts.glob("[!.]*.json"))) < 3 and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
        shutil.rmtree(tmp_path / "labels")
        done = predict_files(THRESHOLD, [tmp_path / "in"], out, tmp_path / "labels")
        assert 3 <= done.resumed < 40
        predict_files(THRESHOLD, [tmp_path / "in"], tmp_path / "whole.json", tmp_path / "whole")
        assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
        assert len(list((tmp_path / "labels").glob("*.tif"))) == 40, "labels of resumed images are written again"
        for path in (tmp_path / "whole").iterdir():
            assert path.read_bytes() == (tmp_path / "labels" / path.name).read_bytes()
        assert not parts.exists()

    @pytest.fixture
    def half_done(self, folder, tmp_path):
        """Two images, of which the first is done, as if the process had been killed then."""
        for name in ("0.png", "1.png"):
            shutil.copy(folder / name, tmp_path / name)
        images, out = [tmp_path / "0.png", tmp_path / "1.png"], tmp_path / "out.json"
        predict_files(THRESHOLD, images, out)
        finished = out.read_bytes()
        out.unlink()

        def stop(*_):
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cellkit.predict.files._assemble", stop)
            with pytest.raises(KeyboardInterrupt):
                predict_files(THRESHOLD, images[:1], out)
        assert len(list((tmp_path / "out.json.parts").glob("*.json"))) == 1
        return images, out, finished

    def test_what_is_done_is_taken_up(self, half_done):
        images, out, finished = half_done
        assert predict_files(THRESHOLD, images, out).resumed == 1
        assert out.read_bytes() == finished

    def test_but_not_with_other_settings_or_another_image(self, half_done, drawn):
        images, out, _ = half_done
        write_png(images[0], drawn.image(4))
        assert predict_files(THRESHOLD, images, out).resumed == 0

    def test_nor_with_other_settings(self, half_done):
        images, out, _ = half_done
        assert predict_files(find_model("threshold", {"diameter_px": 31}), images, out).resumed == 0

    def test_nor_where_an_overlay_is_still_to_be_drawn(self, half_done, tmp_path):
        images, out, _ = half_done
        done = predict_files(THRESHOLD, images, out, overlays=tmp_path / "overlays")
        assert done.resumed == 0
        assert sorted(path.name for path in (tmp_path / "overlays").iterdir()) == ["0.png", "1.png"]

    def test_a_picture_that_cannot_be_read_any_more(self, half_done):
        images, out, _ = half_done
        images[1].write_bytes(b"\x89PNG")
        done = predict_files(THRESHOLD, images, out)
        assert (done.images, done.resumed, len(done.quarantined)) == (1, 1, 1)


class TestConvertFiles:
    def test_one_png_per_time(self, stack, tmp_path):
        written, quarantined = convert_files([stack], tmp_path / "out", Conversion(CHANNELS, "focus", always=True))
        assert [path.name for path in written] == ["plate_t0.png", "plate_t1.png"]
        assert quarantined == []
        expected = convert_file(stack, Conversion(CHANNELS, "focus"))
        assert np.array_equal(np.array(Image.open(written[1])), expected[1].image)
        table = (tmp_path / "out/conversion.csv").read_text().splitlines()
        assert table[0] == "image_id,source,colour,channel,low,high,clipped_fraction,scaled_by,note,um_per_px"
        assert len(table) == 5

    def test_the_same_for_any_number_of_workers(self, stack, folder, tmp_path):
        how = Conversion({"nuclei": 1}, always=True)
        for workers in (1, 2):
            convert_files([stack, folder], tmp_path / str(workers), how, workers)
        names = sorted(path.name for path in (tmp_path / "1").glob("[!.]*"))
        assert len(names) == 9
        assert all((tmp_path / "1" / n).read_bytes() == (tmp_path / "2" / n).read_bytes() for n in names)

    def test_bad_files_are_set_aside(self, stack, tmp_path):  # fault 1
        shutil.copy(stack, tmp_path / "good.tif")
        (tmp_path / "cut.tif").write_bytes(stack.read_bytes()[:9000])
        written, quarantined = convert_files([tmp_path], tmp_path / "out", Conversion(CHANNELS, always=True))
        assert len(written) == 2
        assert [Path(item.item).name for item in quarantined] == ["cut.tif"]

    def test_no_channel_is_guessed(self, stack, tmp_path):
        with pytest.raises(UserError, match="0 actin, 1 DAPI; neither nuclei nor cytoplasm is named"):
            convert_files([stack], tmp_path / "out", Conversion(always=True))
