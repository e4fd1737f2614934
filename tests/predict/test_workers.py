"""Predicting, measuring and scoring with 1, 2 and 8 processes: the same bytes, the same images left out, and a kill survived."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from predict_cases import CHANNELS, THRESHOLD, folder, stack  # noqa: F401

from cellkit.cells.dataset import predict_all
from cellkit.commands.main import main
from cellkit.formats.coco_reading import read_coco
from cellkit.measure.images import measure_files, write_cells
from cellkit.microscope.convert import Conversion
from cellkit.models import threshold
from cellkit.predict.files import predict_files

MANY = (8, 2, 1)  # processes, that start once

# A backend of one's own: it ends its process at a bright image while a file says so.
DEADLY = '''
import os
import numpy as np
from cellkit.cells.instances import Instances
from cellkit.models.shared.contract import Segmenter
from cellkit.settings import Frozen

NAME = "deadly"
TITLE = "Deadly"
NEEDS_CHECKPOINT = False
BYTES_PER_PX = 1


class Settings(Frozen):
    """Nothing."""


class TrainSettings(Frozen):
    """Nothing."""


def train(train, val, config, out):
    """Never."""


def load(checkpoint=None, settings=None):
    """Return a function from images to their cells."""
    def find(image, left_out):
        if image[0, 0, 0] == 201 and os.path.exists("deadly.txt"):
            os._exit(9)
        return Instances.from_labels((image[..., 0] > 100).astype(np.int32))
    return Segmenter(find, {})
'''


def bytes_of(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def mixed(folder, stack, tmp_path_factory) -> Path:  # noqa: F811
    """Six pictures, a file of two times, one that is cut short and one that is empty."""
    place = tmp_path_factory.mktemp("mixed")
    shutil.copytree(folder, place, dirs_exist_ok=True)
    shutil.copy(stack, place)
    (place / "3b.png").write_bytes((folder / "3.png").read_bytes()[:700])
    (place / "0.tif").write_bytes(b"")
    return place


@pytest.fixture(scope="module")
def predicted(mixed, tmp_path_factory) -> dict[int, tuple]:
    made = {}
    for workers in MANY:
        out = tmp_path_factory.mktemp(f"by_{workers}_")
        how = Conversion(CHANNELS, scale=0.5)
        done = predict_files(THRESHOLD, [mixed], out / "out.json", out / "labels", conversion=how, workers=workers)
        made[workers] = out, done
    return made


def test_predictions_are_the_same_bytes(predicted, mixed):
    out, one = predicted[1]
    assert (one.images, one.resumed) == (8, 0) and one.cells > 8
    assert {Path(item.item).name for item in one.quarantined} == {"3b.png", "0.tif"}
    assert [record.image_id for record in read_coco(out / "out.json").records][:3] == ["0", "1", "2"]
    for workers in MANY:
        place, done = predicted[workers]
        assert bytes_of(place) == bytes_of(out) and done.quarantined == one.quarantined, workers


def test_measurements_are_the_same_bytes(predicted, mixed, tmp_path):
    for workers in MANY:
        found = measure_files([mixed], predicted[1][0] / "out.json", conversion=Conversion(CHANNELS), workers=workers)
        write_cells(tmp_path / f"{workers}.csv", found.table)
    assert len({(tmp_path / f"{workers}.csv").read_bytes() for workers in MANY}) == 1


def test_a_notebook_finds_the_same_cells(drawn):
    one = predict_all(threshold.load(), drawn, workers=1)
    assert any(map(len, one))
    assert all(predict_all(threshold.load(), drawn, workers=workers) == one for workers in MANY)


def test_the_command_leaves_the_same_out_and_ends_with_3(mixed, tmp_path, capsys):
    said = []
    for workers in ("1", "2"):
        out = tmp_path / f"{workers}.json"
        code = main(["predict", "threshold", str(mixed), "-o", str(out), "--nuclei", "DAPI", "--workers", workers])
        said.append((code, capsys.readouterr().err, out.read_bytes()))
    assert said[0] == said[1] and said[0][0] == 3 and "3b.png" in said[0][1]


def test_a_killed_worker_is_said_and_repeating_goes_on(folder, tmp_path):  # noqa: F811
    import numpy as np
    from conftest import write_png

    own = tmp_path / "own/models"
    own.mkdir(parents=True)
    (own / "deadly.py").write_text(DEADLY)
    for k in range(12):
        image = np.zeros((20, 20, 3), np.uint8)
        image[..., :2] = 201 if k == 9 else 5
        image[5:9, 5:9] = 150, 90, 3
        write_png(tmp_path / f"in/{k:02}.png", image)
    (tmp_path / "deadly.txt").touch()
    env = os.environ | {"CELLKIT_MODULES": str(tmp_path / "own"), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "cellkit", "predict", "deadly", "in", "-o", "out.json", "--workers", "2"]
    how = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "check": False}
    killed = subprocess.run(command, **how)
    assert killed.returncode == 2 and "a worker process was killed" in killed.stderr, killed.stderr
    assert not (tmp_path / "out.json").exists()
    (tmp_path / "deadly.txt").unlink()
    again = subprocess.run(command, **how)
    assert again.returncode == 0 and "of 12 images done before" in again.stderr, again.stderr
    alone = subprocess.run([*command[:-4], "-o", "alone.json"], **how)
    assert alone.returncode == 0 and (tmp_path / "alone.json").read_bytes() == (tmp_path / "out.json").read_bytes()
