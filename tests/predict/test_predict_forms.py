"""What a model found, as files of other programs: written image by image, taken up after a kill, corrections kept."""

import json

import pytest
from predict_cases import THRESHOLD, folder  # noqa: F401

from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.formats.any import read_folder
from cellkit.formats.coco_reading import read_coco
from cellkit.predict.files import predict_files


@pytest.mark.parametrize(("form", "ending"), [("geojson", ".geojson"), ("roi", "_rois.zip"), ("png", ".png")])
def test_one_file_per_image_in_the_form_that_is_asked_for(tmp_path, folder, form, ending):  # noqa: F811
    command = ["predict", "threshold", str(folder), "-o", str(tmp_path / "out.json"), "--labels", str(tmp_path / "l")]
    assert main([*command, "--format", form]) == 0
    coco = read_coco(tmp_path / "out.json")
    names = sorted(f"{record.image_id}{ending}" for record in coco.records)
    assert sorted(path.name for path in (tmp_path / "l").iterdir() if path.suffix != ".json") == names
    side, skipped = read_folder(tmp_path / "l")
    assert (side.cells, skipped) == (coco.cells, [])
    assert main([*command, "--format", form]) == 0, "our own may be written again"


def test_what_was_corrected_in_qupath_is_not_written_over(tmp_path, folder):  # noqa: F811
    about = THRESHOLD, [folder], tmp_path / "out.json", tmp_path / "l"
    predict_files(*about, form="geojson")
    path = sorted((tmp_path / "l").iterdir())[0]
    data = json.loads(path.read_text())
    del data["cellkit"]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="may hold corrections"):
        predict_files(*about, form="geojson")
    assert json.loads(path.read_text()) == data


def test_forms_that_need_the_picture_or_a_folder(tmp_path, folder, capfd):  # noqa: F811
    command = ["predict", "threshold", str(folder), "-o", str(tmp_path / "out.json")]
    for more, text in (
        (["--labels", str(tmp_path / "l"), "--format", "seg"], "cellkit labels OUT.json"),
        (["--labels", str(tmp_path / "l"), "--format", "geo"], "no format 'geo'"),
        (["--format", "geojson"], "name it: --labels DIR"),
    ):
        assert main([*command, *more]) == 2
        assert text in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
