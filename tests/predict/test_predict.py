"""Any model on any images: found by name, streamed, resumed after a kill, bad images skipped."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import convert_file, write_png
from filelock import FileLock
from PIL import Image
from predict_cases import CHANNELS, THRESHOLD, folder, run_dir, stack, unet  # noqa: F401

from cellkit.cells.instances import Instances
from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels, write_labels
from cellkit.microscope.convert import Conversion
from cellkit.microscope.frames import find_frames, find_images
from cellkit.models import get_backend
from cellkit.models.weights import save_checkpoint
from cellkit.predict.files import predict_files
from cellkit.predict.images import read_picture
from cellkit.predict.model import find_model


def cells_of(path: Path) -> dict[str, Instances]:
    coco = read_coco(path)
    return dict(zip([record.image_id for record in coco.records], coco.instances, strict=True))


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
        how = {"with_scores": True, "made_by": ["proposed"] * len(coco)}
        write_coco(tmp_path / "again.json", coco.records, coco.instances, coco.classes, **how)
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

    def test_the_diameter_of_weights_by_their_name_is_said(self, folder, tmp_path, monkeypatch, capsys):
        """As their card says it; of one that does not, as those converted from Cellpose, as the network does."""
        from cellkit.models.unet_network import CellposeUNet

        network = CellposeUNet(widths=(4, 8, 12, 16))
        network.diam_labels.data.fill_(42)
        for name, told in (("bare", {}), ("told", {"diameter_px": 35.0})):
            card = {**network.config, **told}
            save_checkpoint(tmp_path / f"{name}.safetensors", network.state_dict(), "cellpose_unet", config=card)
        monkeypatch.setattr("cellkit.fetch.find.PACKAGED", tmp_path)
        for spec, px in (("bare", "42"), ("told", "35"), (tmp_path / "bare.safetensors", "")):
            predict_files(find_model(spec), [folder / "0.png"], tmp_path / "o.json")
            said = capsys.readouterr().err
            assert (f"{spec} looks for cells of {px} px; others: --diameter auto, or PX" in said) == bool(px)
        predict_files(find_model("bare", {"diameter_px": 30}), [folder / "0.png"], tmp_path / "o.json")
        assert "looks for cells of" not in capsys.readouterr().err

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
