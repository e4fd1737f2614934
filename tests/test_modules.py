"""A data set, a format and a competition are one file each: written into a folder of their own, they are found and run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_png

from cellkit.errors import UserError
from cellkit.formats.label_images import write_labels
from cellkit.modules import VARIABLE, _candidates, code_sha256, load, names_of

ROOT = Path(__file__).parents[1]
SOURCE = """
from functools import partial

from cellkit.sources.assign_splits import assign_splits
from cellkit.sources.listing import SourceImage
from cellkit.sources.loading import load_picture


def detect(root):
    return (root / "stripes.txt").is_file()


def classes(root):
    return {"HEK"}


def read(root, config):
    paths = sorted(root.glob("*.png"))
    items = [
        SourceImage(path.stem, "HEK", "", "train", path.name, partial(load_picture, root, path, config), files=(path,))
        for path in paths
    ]
    yield from assign_splits(items, config)
"""
FORMAT = """
import numpy as np

from cellkit.formats.any import ImageCells
from cellkit.cells.disjoint import lost_pixels
from cellkit.cells.instances import Instances

ENDINGS = (".dots",)
WRITES = {"dots": ".dots"}


def picture_stem(name):
    return name.removesuffix(".dots")


def read_image(file, how, size=None):
    return ImageCells(Instances.from_labels(np.loadtxt(file, int, ndmin=2)), ("HEK",))


def write_image(path, image):
    np.savetxt(path, image.cells.paint(), "%d")
    return lost_pixels(image.cells)
"""
PROFILE = """
COLUMNS = ("picture", "runs")
PIXEL_ORDER = "row-major"
TRUTH_COLUMNS = ()
"""


@pytest.fixture
def cellkit(tmp_path):
    """Run cellkit where a data set, a format and a competition lie in a folder of one's own."""
    folder = tmp_path / "own"
    folder.mkdir()
    files = {"sources/stripes.py": SOURCE, "formats/dots.py": FORMAT, "formats/competitions/mine.py": PROFILE}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    env = os.environ | {"CELLKIT_MODULES": str(folder), "PYTHONPATH": str(ROOT)}

    def run(*arguments):
        command = [sys.executable, "-m", "cellkit", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_data_set_a_format_and_a_competition_are_one_file_each(cellkit, tmp_path):
    data, labels = tmp_path / "data", np.array([[1, 1, 0, 2], [1, 0, 0, 2]])
    data.mkdir()
    write_png(data / "a.png", np.full((2, 4, 3), 9, np.uint8))
    (data / "stripes.txt").write_text("")
    told = json.loads(cellkit("inspect", data, "--json"))
    assert (told["kind"], told["images"], list(told["cell_types"])) == ("stripes", 1, ["HEK"])

    write_labels(tmp_path / "labels/a.tif", labels)
    cellkit("coco", tmp_path / "labels", "-o", tmp_path / "a.json")
    cellkit("labels", tmp_path / "a.json", "-o", tmp_path / "dots", "--format", "dots")
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "dots/a.dots"), labels)
    assert "1.000" in cellkit("score", tmp_path / "labels", tmp_path / "dots", "--convention", "kaggle")

    cellkit("submit", tmp_path / "dots", "--profile", "mine", "-o", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "picture,runs\na,1 2 5 1\na,4 1 8 1\n"
    assert "valid" in cellkit("check-submission", tmp_path / "out.csv", "--profile", "mine")


def test_a_name_that_is_no_file_is_refused_with_the_nearest():
    assert {"coco", "labels", "seg", "roi", "results", "kaggle"} <= set(names_of("format"))
    with pytest.raises(UserError, match="no source 'dsb2017' .did you mean 'dsb2018'"):
        load("source", "dsb2017")


BACKEND = "TITLE: str = 'Mine'\nREQUIRES = ()\n"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a file of one's own, and run code that finds it; return what it printed, or the last line of its error."""
    monkeypatch.setenv("CELLKIT_MODULES", str(tmp_path / "own"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(code, **files):
        for name, content in files.items():
            path = tmp_path / "own" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".py").write_bytes(content)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        return done.stdout.strip() or done.stderr.strip().splitlines()[-2:]

    return run


def test_a_backend_of_ones_own_is_found_and_named(own):
    code = "from cellkit.models import backend_names, title_of; print('mine' in backend_names(), title_of('mine'))"
    assert own(code, models__mine=BACKEND.encode()) == "True Mine"


def test_two_files_of_one_name_are_refused(own):
    problem, remedy = own("from cellkit.modules import names_of; names_of('source')", sources__dsb2018=SOURCE.encode())
    assert "is called like" in problem and remedy == "give it a name of its own"


def test_two_readers_of_one_suffix_are_refused(own):
    reader = b"from cellkit.microscope.file_info import Reader\nREADER = Reader('a', 'A', ('.tif',), open)\n"
    problem, _ = own("import cellkit.microscope.open", microscope__aaa=reader)
    assert "both claim '.tif'" in problem


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"def read(root, config:\n", "cannot be imported: SyntaxError"), (b"\xff\xfe", "cannot be read")],
)
def test_a_broken_file_is_named_with_what_to_do(own, content, told):
    problem, remedy = own("from cellkit.modules import load_all; load_all('source')", sources__broken=content)
    assert "broken.py" in problem and told in problem
    assert remedy == "mend it, or take its folder out of CELLKIT_MODULES"


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("RuntimeError('no licence')", "RuntimeError: no licence"),
        ("ImportError('no')", "no backend 'broken_one.model'"),
    ],
)
def test_an_installed_package_that_cannot_be_imported_is_refused(tmp_path, monkeypatch, raised, told):
    (tmp_path / "broken_one").mkdir()
    (tmp_path / "broken_one" / "__init__.py").write_text(f"raise {raised}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as refused:
        load("backend", "broken_one.model")
    assert told in str(refused.value)


def test_a_folder_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("CELLKIT_MODULES", "nowhere")
    with pytest.raises(UserError, match="names nowhere, no such folder"):
        names_of("source")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    (tmp_path / "models").touch()  # as one without the right to read it, which root always has
    with pytest.raises(UserError, match="models cannot be listed: Not a directory"):
        _candidates(str(tmp_path / "models"))


def test_a_file_that_is_added_within_a_tick_of_the_clock_is_found(tmp_path):
    """FAT counts the times of a folder in steps of two seconds."""
    tick = time.time_ns() - 2 * 10**9
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").touch()
        os.utime(tmp_path, ns=(tick, tick))
        assert name in dict(_candidates(str(tmp_path)))
    os.utime(tmp_path, ns=(0, 0))
    assert _candidates(str(tmp_path)) is _candidates(str(tmp_path)), "of one that has not changed for long it is kept"


def test_a_module_of_ones_own_is_part_of_the_code_a_stage_depends_on(tmp_path, monkeypatch):
    from cellkit.manifest import package_sha256

    before = package_sha256()
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine.py").write_text(BACKEND)
    monkeypatch.setenv("CELLKIT_MODULES", str(tmp_path))
    added = package_sha256()
    (tmp_path / "models/mine.py").write_text(BACKEND + "\n")
    assert len({before, added, package_sha256()}) == 3


def test_a_format_that_cannot_mark_proposals_is_given_none(tmp_path, monkeypatch):
    from types import ModuleType

    from cellkit.cells.instances import Instances
    from cellkit.cells.records import ImageRecord
    from cellkit.formats import any as formats

    dots = ModuleType("dots")
    exec(FORMAT, dots.__dict__)
    monkeypatch.setattr(formats, "writable", lambda: {"dots": dots, "tif": formats.load("format", "labels")})
    cells = Instances.from_labels(np.array([[1, 1, 0, 2]]))
    record = ImageRecord("a", "a.png", 1, 4)
    with pytest.raises(UserError, match="'dots' cannot say that their cells are a model's proposals"):
        formats.write_folder(tmp_path / "out", [record], [cells], ("HEK",), form="dots", made_by=["proposed"])
    assert not (tmp_path / "out").exists()


def test_a_helper_with_a_function_read_of_its_own_is_no_source(tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "lines.py").write_text("def read(path):\n    return path.read_text().splitlines()\n")
    (folder / "rows.py").write_text(
        "def read(root, columns=()):\n    return []\n\n\ndef read_config(root, config):\n    pass\n"
    )
    (folder / "plates.py").write_text(
        "def read(\n    root: Path, config: ConvertConfig\n) -> Iterator[SourceImage]:\n    yield\n"
    )
    code = "from cellkit.modules import names_of; print(*names_of('source'))"
    named = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {"lines", "rows", "plates"} & set(named) == {"plates"}
    assert {"drawn", "dsb2018", "voc"} <= set(named)


def test_code_outside_the_package_is_known_by_all_files_beside_it(tmp_path, monkeypatch):
    package = tmp_path / "mine_alone"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text("A = 1")
    monkeypatch.syspath_prepend(tmp_path)
    first = code_sha256("mine_alone.model")
    (package / "helper.py").write_text("B = 1")
    second = code_sha256("mine_alone.model")
    assert first and second and first != second == code_sha256("mine_alone.model")
