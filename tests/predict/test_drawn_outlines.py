"""Pictures with outlines: nobody takes them for images, a resumed prediction has those of its own cells; a diameter of auto."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import write_png
from PIL import Image

from cellkit.cells.instances import Instances
from cellkit.microscope.folders import IMAGE_SUFFIXES, list_files
from cellkit.microscope.overlay_mark import mark_of, stamp_of
from cellkit.predict import files
from cellkit.predict.files import predict_files
from cellkit.predict.model import find_model


@pytest.fixture
def pictures(drawn, tmp_path):
    for name, k in (("a", 0), ("b", 1)):
        write_png(tmp_path / f"in/{name}.png", drawn.image(k))
    return tmp_path / "in"


def test_outlines_of_an_earlier_call_are_no_images(pictures, tmp_path, said):
    first = (
        "predict",
        "threshold",
        pictures,
        "-o",
        tmp_path / "1.json",
        "--overlays",
        pictures / "overlays",
        "--diameter",
        "30",
    )
    assert said(*first)[0] == 0
    assert all(mark_of(path) for path in (pictures / "overlays").iterdir())
    code, out, err = said(
        "predict", "threshold", pictures, "-o", tmp_path / "2.json", "--diameter", "30", "--cells", tmp_path / "c.csv"
    )
    assert code == 0 and "2 images" in out and "2 pictures with outlines that cellkit drew left out" in err
    assert set(pd.read_csv(tmp_path / "c.csv")["image"]) == {"a", "b"}
    assert mark_of(pictures / "a.png") is None and mark_of(tmp_path / "none.png") is None
    assert [path.name for path in list_files(pictures, IMAGE_SUFFIXES)] == ["a.png", "b.png"], "nor for a run"
    code, out, _ = said(
        "predict", "threshold", pictures / "overlays/a.png", "-o", tmp_path / "3.json", "--diameter", "30"
    )
    assert code == 0 and "1 image" in out, "named itself it is taken"
    Image.open(pictures / "overlays/a.png").verify()


def test_a_resumed_prediction_draws_outlines_anew_where_they_are_of_other_cells(pictures, tmp_path, monkeypatch):
    """Killed with one setting, then with another, which draws into the same folder, then repeated with the first."""
    out, places, overlay = tmp_path / "o.json", {"overlays": tmp_path / "drawn"}, tmp_path / "drawn/a.png"
    few, many = (find_model("threshold", {"diameter_px": 30, "min_area_px": area}) for area in (700, 15))
    assemble, drawn = files._assemble, []

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_assemble", killed)
    for model in (many, few):
        with pytest.raises(KeyboardInterrupt):
            predict_files(model, [pictures / "a.png"], out, **places)
        drawn.append(overlay.read_bytes())
    monkeypatch.setattr(files, "_assemble", assemble)
    assert drawn[0] != drawn[1]
    predict_files(many, [pictures / "a.png"], out, **places)
    assert overlay.read_bytes() == drawn[0]


def test_a_stamp_tells_cells_apart_by_pixels_and_class():
    labels = np.zeros((9, 9), np.int32)
    labels[1:4, 1:4] = 1
    cells, moved = Instances.from_labels(labels), Instances.from_labels(np.roll(labels, 1, 0))
    assert stamp_of(cells) == stamp_of(Instances.from_labels(labels).with_scores(0.5))
    assert len({stamp_of(cells), stamp_of(moved), stamp_of(cells.with_classes(2)), stamp_of(cells[:0])}) == 4


@pytest.mark.parametrize("more", [(), ("--workers", "2")])
def test_a_diameter_that_is_estimated_goes_with_any_number_of_workers(more, pictures, tmp_path, said):
    code, out, err = said("predict", "starter_light", pictures, "-o", tmp_path / "o.json", "--diameter", "auto", *more)
    assert code == 0 and "diameter estimated as" in err and "2 images" in out
    code, _, err = said("predict", "threshold", pictures, "-o", tmp_path / "t.json", "--diameter", "auto", *more)
    assert code == 2 and "threshold cannot estimate a diameter" in err
