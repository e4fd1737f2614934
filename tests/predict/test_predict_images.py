"""Images are found, read and converted: pictures as they are, microscope files as notebook 01 does."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import convert_file, write_png
from PIL import Image
from predict_cases import CHANNELS, folder, stack  # noqa: F401

from cellkit.errors import UserError
from cellkit.microscope.convert import Conversion
from cellkit.microscope.frames import Frame, find_frames, find_images
from cellkit.predict.images import convert_files, read_picture


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
