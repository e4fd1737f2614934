"""What a model found, as files of other programs: written image by image, taken up after a kill, corrections kept."""

import json

import pytest
import tifffile
from predict_cases import THRESHOLD, folder  # noqa: F401

from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.formats.any import read_folder, read_side
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels
from cellkit.formats.labels import is_proposed
from cellkit.predict.files import predict_files


@pytest.mark.parametrize(
    ("form", "ending"), [("geojson", ".geojson"), ("roi", "_rois.zip"), ("png", ".png"), ("tif", ".tif")]
)
def test_one_file_per_image_in_the_form_that_is_asked_for(tmp_path, folder, form, ending):  # noqa: F811
    command = ["predict", "threshold", str(folder), "-o", str(tmp_path / "out.json"), "--labels", str(tmp_path / "l")]
    assert main([*command, "--format", form]) == 0
    coco = read_coco(tmp_path / "out.json")
    names = sorted(f"{record.image_id}{ending}" for record in coco.records)
    assert sorted(path.name for path in (tmp_path / "l").iterdir() if path.suffix != ".json") == names
    side, skipped = read_folder(tmp_path / "l")
    assert (side.cells, skipped) == (coco.cells, [])
    assert set(coco.made_by) == set(side.made_by) == {"proposed"}, "by a model, and no truth"
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


def test_what_was_found_is_no_truth_until_somebody_corrects_it(tmp_path, folder, said):  # noqa: F811
    out, labels = tmp_path / "out.json", tmp_path / "l"
    predict_files(THRESHOLD, [folder], out, labels)
    for truth in (out, labels):
        code, _, err = said("score", truth, out)
        assert code == 2 and "holds proposals, no truth" in err
    path = sorted(labels.iterdir())[0]
    assert is_proposed(path)
    found = read_labels(path)
    found[found == 1] = 0
    tifffile.imwrite(path, found, software=tifffile.TiffFile(path).pages[0].software)
    assert not is_proposed(path) and read_side(labels).made_by[:2] == ["", "proposed"]
    assert said("score", labels, out)[0] == 0, "what was corrected is scored, alone"
    assert said("submit", out, "--profile", "dsb2018", "-o", tmp_path / "s.csv")[0] == 0
    code, _, err = said("labels", out, "-o", tmp_path / "copy", "--format", "tif")
    assert code == 0 and "what a model proposed, no truth" in err and is_proposed(tmp_path / "copy" / path.name)
