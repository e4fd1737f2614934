"""Predicting, measuring and scoring with 1, 2 and 3 processes: the same bytes, the same images left out, and a kill survived."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_png
from predict_cases import CHANNELS, THRESHOLD, folder, stack  # noqa: F401

from cellkit.cells.dataset import predict_all
from cellkit.cells.instances import Instances
from cellkit.commands.comparison import score_sides
from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.formats.any import read_side
from cellkit.formats.coco_reading import read_coco
from cellkit.measure.images import measure_files, write_cells
from cellkit.microscope.convert import Conversion
from cellkit.models import threshold
from cellkit.predict import each
from cellkit.predict.files import Predicted, predict_files

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


@dataclass
class Made:
    """What one number of processes made."""

    out: Path
    predicted: Predicted
    cells: list[Instances]
    scores: str


@pytest.fixture(scope="module")
def made(mixed, drawn, tmp_path_factory) -> dict[int, Made]:
    found = {}
    for workers in (3, 2, 1):  # so that three processes start once
        out = tmp_path_factory.mktemp(f"by_{workers}_")
        how, labels = Conversion(CHANNELS, scale=0.5), out / "labels"
        done = predict_files(THRESHOLD, [mixed], out / "out.json", labels, conversion=how, workers=workers)
        table = measure_files([mixed], labels, conversion=Conversion(CHANNELS), workers=workers).table
        write_cells(out / "cells.csv", table)
        cells = predict_all(threshold.load(), drawn, workers=workers)
        side = replace(read_side(labels, workers=workers), made_by=[])  # as if they were a truth
        moved = [Instances.from_labels(np.roll(one.paint(), 2, 1)) for one in side.instances]
        scores = score_sides(side, replace(side, instances=moved), ["point", "aji_cellpose", "kaggle"], workers=workers)
        found[workers] = Made(out, done, cells, json.dumps(scores))
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_the_same_bytes_for_any_number(made, workers):
    one, several = made[1], made[workers]
    assert sorted(bytes_of(one.out))[0] == "cells.csv" and len(bytes_of(one.out)) == 10
    assert bytes_of(several.out) == bytes_of(one.out)
    assert several.predicted.quarantined == one.predicted.quarantined
    assert several.cells == one.cells and any(map(len, one.cells))
    assert several.scores == one.scores and 0.5 < json.loads(one.scores)["conventions"]["kaggle"]["score"] < 1


def test_damaged_files_are_named_and_the_others_in_order(made):
    done = made[3].predicted
    assert (done.images, done.resumed) == (8, 0) and done.cells > 8
    assert {Path(item.item).name for item in done.quarantined} == {"3b.png", "0.tif"}
    assert [record.image_id for record in read_coco(done.path).records][:3] == ["0", "1", "2"]


def test_images_left_out_are_named_in_their_order_whenever_their_turn_came(mixed, tmp_path, monkeypatch):
    def refuse(path: Path, needed: int, what: str) -> None:
        if path.name == "0.png":
            raise UserError("too large", "cut it")

    monkeypatch.setattr(each, "check_memory", refuse)
    how = Conversion(CHANNELS, scale=0.5)  # pictures are of another scale, whose turn is the second
    done = predict_files(replace(THRESHOLD, own_px=True), [mixed], tmp_path / "out.json", conversion=how)
    assert [Path(item.item).name for item in done.quarantined] == ["0.tif", "0.png", "3b.png"]


def test_the_command_leaves_the_same_out_and_ends_with_3(mixed, tmp_path, capsys):
    said = []
    for workers in ("1", "2"):
        out = tmp_path / f"{workers}.json"
        code = main(["predict", "threshold", str(mixed), "-o", str(out), "--nuclei", "DAPI", "--workers", workers])
        said.append((code, capsys.readouterr().err, out.read_bytes()))
    assert said[0] == said[1] and said[0][0] == 3 and "3b.png" in said[0][1]


def test_a_killed_worker_is_said_and_repeating_goes_on(folder, tmp_path):  # noqa: F811
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
