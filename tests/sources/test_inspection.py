"""What a file or a data set holds, told before anything is done with it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import write_png
from PIL import Image

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco
from cellkit.formats.label_images import write_labels
from cellkit.microscope.open import inspect_file
from cellkit.sources import inspection
from cellkit.sources.ingest import detect_kind
from cellkit.sources.inspection import classes_of, file_to_text, folder_to_text, inspect_coco, inspect_folder

GREY = np.full((20, 30), 7, np.uint8)
LABELS = np.zeros((20, 30), np.int32)
LABELS[2:6, 2:6], LABELS[2:6, 6:10], LABELS[15:, 20:], LABELS[10, 10] = 1, 2, 3, 4
LABELS[3, 3] = 0


def picture(path: Path) -> None:
    write_png(path, np.stack([GREY] * 3, axis=-1))


def labelme(path: Path, *labels: str) -> None:
    picture(path.with_suffix(".png"))
    corners = [[1.0, 1.0], [6.0, 1.0], [6.0, 6.0]]
    shapes = [{"label": label, "shape_type": "polygon", "points": corners} for label in labels]
    content = {"shapes": shapes, "imagePath": f"{path.stem}.png", "imageHeight": 20, "imageWidth": 30}
    path.write_text(json.dumps(content))


@pytest.fixture
def two_lines(tmp_path):
    for line in ("u2os", "nih3t3"):
        for name in ("a", "b"):
            picture(tmp_path / line / "images" / f"{name}.png")
            write_labels(tmp_path / line / "labels" / f"{name}.tif", LABELS)
    return tmp_path


class TestFolder:
    def test_pictures_tell_their_channels(self, tmp_path):
        for name in ("HEK/a.png", "N2a/b.PNG"):
            picture(tmp_path / name)
        Image.fromarray(GREY).save(tmp_path / "HEK" / "c.png")
        told, _ = inspect_folder(tmp_path)
        assert list(told["pictures"].values()) == [2, 1]
        text = folder_to_text(told)
        assert "2 pictures (PNG, JPEG): channels 0 red, 1 green, 2 blue, uint8" in text
        assert "1 picture (PNG, JPEG): channels 0" in text

    def test_two_lines(self, two_lines):
        told, quarantined = inspect_folder(two_lines)
        assert quarantined == told["set_aside"] == []
        assert (told["kind"], told["images"], told["unlabelled"], told["objects"]) == ("two_lines", 4, 0, 16)
        assert told["classes"] == {"nih3t3": 8, "u2os": 8}
        assert told["cell_types"] == {"nih3t3": 2, "u2os": 2}
        assert (told["height_px"], told["width_px"]) == ([20, 20], [30, 30])
        assert told["objects_per_image"] == [4, 4, 4]
        assert told["area_px"] == [1, 15.5, 50]
        assert told["faults"] == {"tiny": 4, "pieces": 0, "holes": 4, "touching": 8, "border": 4}
        assert "splits" not in told, "the layout has none of its own"
        json.dumps(told, allow_nan=False)

    def test_labelme(self, tmp_path):
        (tmp_path / "train").mkdir()
        (tmp_path / "val").mkdir()
        labelme(tmp_path / "train/0.json", "round", "long", "long")
        labelme(tmp_path / "val/1.json", "round")
        (tmp_path / "val/2.json").write_text(
            '{"shapes": [{"label": "round", "shape_type": "circle"}], "imagePath": "1.png"}'
        )
        told, quarantined = inspect_folder(tmp_path)
        assert (told["kind"], told["images"], told["objects"]) == ("labelme", 2, 4)
        assert told["classes"] == {"long": 2, "round": 2}
        assert told["splits"] == {"train": 1, "val": 1}
        assert told["overlapping"] == 1
        assert [item.item for item in quarantined] == ["val/2.json"]

    def test_spellings_of_a_label(self, tmp_path):
        labelme(tmp_path / "0.json", "HeLa", "hela ", "hela ")
        labelme(tmp_path / "1.json", " ", "hela", "Ignore")
        told, quarantined = inspect_folder(tmp_path)
        assert told["classes"] == {"HeLa": 4, "unknown": 1} and not quarantined
        assert told["spellings"] == {" ": "", "hela": "HeLa", "hela ": "HeLa"}
        assert "label 'hela ' is read as HeLa" in folder_to_text(told)

    def test_spellings_of_a_category(self, tmp_path):
        cells = Instances.from_labels(LABELS).with_classes([1, 2, 1, 2])
        write_coco(tmp_path / "a.json", [ImageRecord("a", "a.png", *GREY.shape)], [cells], ["hela", "HeLa"])
        picture(tmp_path / "a.png")
        assert inspect_folder(tmp_path)[0]["classes"] == {"HeLa": 4}

    @pytest.mark.parametrize("axes", ["QQ", "tyx", "X", ""])
    def test_axes_that_are_none(self, two_lines, axes):
        with pytest.raises(UserError, match=f"axes is '{axes}'\\s+give 2 to 6 letters"):
            inspect_folder(two_lines, axes=axes)

    def test_microscope(self, tmp_path):
        stack = np.stack([GREY.astype(np.uint16)] * 2)
        for name in ("HEK/1.ome.tif", "N2a/1.ome.tif", "mixed/1.ome.tif"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / name, stack, metadata={"axes": "CYX", "Channel": {"Name": ["GFP", "DAPI"]}})
            write_labels(tmp_path / "truth" / f"{name[:-8]}.tif", LABELS)
        (tmp_path / "truth/classes.csv").write_text(
            "file,label,class\n"
            + "".join(f"mixed/1.ome.tif,{k},{c}\n" for k, c in enumerate(("HEK", "N2a", "N2a", "HEK"), 1))
        )
        told, _ = inspect_folder(tmp_path)
        assert told["kind"] == "microscope"
        assert told["classes"] == {"HEK": 6, "N2a": 6}
        assert told["cell_types"] == {"HEK": 1, "N2a": 1, "mixed": 1}

    def test_a_plain_folder_without_labels(self, tmp_path):
        picture(tmp_path / "x/a.png")
        told, _ = inspect_folder(tmp_path)
        assert (told["kind"], told["images"], told["unlabelled"], told["objects"]) == ("folder", 1, 1, 0)
        assert told["area_px"] == [] and told["diameter_px"] is None
        assert folder_to_text(told).splitlines()[0] == "folder: 1 image of 20 x 30 px, 1 without labels"

    def test_a_layout_can_be_named(self, two_lines):
        told, _ = inspect_folder(two_lines / "u2os", "folder")
        assert (told["kind"], told["images"], told["classes"]) == ("folder", 2, {"cell": 8})

    @pytest.mark.parametrize(
        ("name", "kind", "problem"),
        [
            ("none", None, "no folder at"),
            ("", "labelm", r"no source 'labelm' \(did you mean 'labelme'\?\)"),
            ("", "labelme", "no image of the layout 'labelme'"),
            ("", None, "no image of the layout 'folder'"),
        ],
    )
    def test_refused(self, tmp_path, name, kind, problem):
        with pytest.raises(UserError, match=problem):
            inspect_folder(tmp_path / name, kind)

    def test_words(self, two_lines):
        lines = folder_to_text(inspect_folder(two_lines)[0]).splitlines()
        assert lines[0] == "two_lines: 4 images of 20 x 30 px, 0 without labels"
        assert "objects: 16 (nih3t3 8, u2os 8)" in lines


class TestKind:
    def test_of_each_layout(self, two_lines, tmp_path):
        assert detect_kind(two_lines) == "two_lines"
        for name in ("train", "val"):
            shutil.copytree(two_lines / "u2os", tmp_path / "split" / name)
        assert detect_kind(tmp_path / "split") == "folder", "train and val are no cell lines"
        for name in ("packed/labels", "kaggle/a/images", "kaggle/a/masks", "scope/truth"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "packed/index.csv").write_text("id,modality\n")
        assert [detect_kind(tmp_path / name) for name in ("packed", "kaggle", "scope")] == [
            "dsb2018",
            "dsb2018",
            "microscope",
        ]

    def test_classes_are_what_the_data_set_names(self, two_lines, tmp_path):
        assert classes_of(two_lines, "two_lines") == ("nih3t3", "u2os")
        assert classes_of(tmp_path / "none", "dsb2018") == ("cell",)


class TestFiles:
    def test_coco(self, drawn, tmp_path):
        write_coco(tmp_path / "t.json", drawn.records, drawn.instances, drawn.classes)
        told = inspect_coco(tmp_path / "t.json")
        counts = np.bincount(np.concatenate([cells.class_ids for cells in drawn.instances]))
        assert (told["kind"], told["images"], told["in_part"], told["known"]) == ("coco", 6, 0, 1.0)
        assert told["classes"] == {"HEK": counts[1], "N2a": counts[2]}

    def test_a_microscope_file_in_words(self, tmp_path):
        metadata = {"axes": "TCYX", "Channel": {"Name": ["GFP", "DAPI"]}, "PhysicalSizeX": 0.65}
        tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((3, 2, 20, 30), np.uint16), metadata=metadata)
        text = file_to_text(inspect_file(tmp_path / "a.ome.tif"))
        assert "ome-tiff, TCYX 3 x 2 x 20 x 30 uint16, 0.65 um per px" in text
        assert "channels: 0 GFP, 1 DAPI" in text
        assert "becomes 3 pictures" in text

    def test_a_folder_of_microscope_files_is_listed_a_row_each(self, tmp_path):
        stack = np.stack([GREY.astype(np.uint16)] * 3)
        channels = {
            "Name": ["a", "b", "c"],
            "EmissionWavelength": [461, 520, 600],
            "EmissionWavelengthUnit": ["nm"] * 3,
        }
        how = {"axes": "CYX", "Channel": channels, "PhysicalSizeX": 0.65}
        tifffile.imwrite(tmp_path / "1.ome.tif", stack, metadata=how, photometric="minisblack")
        tifffile.imwrite(tmp_path / "2.tif", stack, metadata=None, photometric="minisblack")
        (tmp_path / "3.oib").write_bytes(b"x")
        picture(tmp_path / "4.png")
        told, quarantined = inspect_folder(tmp_path)
        assert [row["file"] for row in told["files"]] == ["1.ome.tif", "2.tif", "3.oib"], "a PNG needs no row"
        assert [item.item for item in quarantined] == ["2.tif", "3.oib"]
        head, _, *rows = folder_to_text(told).splitlines()[-5:]
        assert [cell.strip() for cell in head.split("|")][1:-1] == list(inspection.FILE_COLUMNS)
        cells = [[cell.strip() for cell in row.split("|")][1:-1] for row in rows]
        channels = "a 461 nm, b 520 nm, c 600 nm"
        assert cells[0] == ["1.ome.tif", "ome-tiff", "CYX", "3 x 20 x 30", "uint16", channels, "0.65", "1 picture"]
        assert cells[1][-1].startswith("refused: has axes")
        assert cells[2][-1] == "refused: is Olympus OIB, which is not read"
        told, quarantined = inspect_folder(tmp_path, axes="CYX")
        assert [item.item for item in quarantined] == ["3.oib"]
        assert told["files"][1]["axes"] == "CYX"


@pytest.mark.realdata
def test_real_data_sets_are_told_apart(data_folder):
    names = ("two_lines", "dkfz", "dsb2018")
    assert [detect_kind(data_folder / name) for name in names] == ["two_lines", "labelme", "dsb2018"]
    assert len(classes_of(data_folder / "dkfz", "labelme")) == 3
