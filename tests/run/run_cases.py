"""Tiny notebooks and runs of them, for the tests of the runner."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest

from cellkit.manifest import read_manifest
from cellkit.run.runner import run_notebooks
from cellkit.run.stale import check

ONE, TWO, THREE = "01_convert", "02_label_with_cellpose", "03_finetune_cellpose"

START = """
from cellkit.config.reading import load_config
from cellkit.run.folder import Run
run = Run(run_dir)
stage = run.start("{name}", load_config(config, overrides).section("{name}"))
"""

PARAMETERS = 'config = "configs/demo.yaml"  # what to do\nrun_dir = "runs/demo"\noverrides = {}'

CONVERT = [
    "stage.path('records.csv').write_text('id,seed\\na,%d\\n' % load_config(config, overrides).seed)",
    "stage.path('images/a.png').write_bytes(b'pixels')",
    "stage.done(records=stage.path('records.csv'), images=stage.root / 'images')",
]

LABEL = [
    "text = run.find('records').read_text()",
    "stage.path('labels/a.tif').write_text(text * 2)",
    "stage.done(labels=stage.root / 'labels')",
]


def write_notebook(
    folder: Path, name: str, cells: list[str], parameters=(PARAMETERS,), start=True, minutes=None
) -> Path:
    """Write a notebook with a tagged parameters cell, a start cell and `cells`."""
    notebook = nbformat.v4.new_notebook()
    tagged = [nbformat.v4.new_code_cell(text, metadata={"tags": ["parameters"]}) for text in parameters]
    first = [START.format(name=name)] if start else []
    plain = [nbformat.v4.new_code_cell(text) for text in [*first, *cells]]
    notebook.cells = [nbformat.v4.new_markdown_cell("why"), *tagged, *plain]
    if minutes:
        notebook.metadata["cellkit"] = {"minutes": minutes}
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Make an empty current folder with a configuration; no other run must be going on around it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELLKIT_RUNNER", raising=False)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text("seed: 1\n")
    return tmp_path


def go(**options) -> int:
    """Run the notebooks of ./notebooks into ./runs/demo."""
    return run_notebooks("configs/demo.yaml", "runs/demo", notebooks="notebooks", **options)


def states(**options) -> dict[str, tuple[str, str]]:
    return {s.name: (s.state, s.why) for s in check("runs/demo", notebooks="notebooks", **options)}


def tree(folder="runs/demo") -> dict[str, bytes]:
    """Return what a reader of the run folder relies on: its files, without lock, manifest and unfinished work."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    skipped = (".lock/", "unfinished/", "manifest.json", "notebooks/")
    return {name: Path(folder, name).read_bytes() for name in names if not name.startswith(skipped)}


def attempt(stage: str) -> dict:
    return read_manifest(Path("runs/demo"))["attempts"][stage]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Run two notebooks once; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished")
    before = os.getcwd()
    os.chdir(folder)
    try:
        (folder / "configs").mkdir()
        (folder / "configs" / "demo.yaml").write_text("seed: 1\n")
        write_notebook(folder / "notebooks", ONE, CONVERT)
        write_notebook(folder / "notebooks", TWO, LABEL)
        assert go() == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def done(finished, here):
    """Make the current folder a copy of the finished run."""
    for name in ("notebooks", "runs"):
        shutil.copytree(finished / name, here / name)
    return here


# ---- what is repeated, and why


def reasons(state: str, stage: str = TWO, **options) -> str:
    """Return why `stage` is in `state`."""
    found, why = states(**options)[stage]
    assert found == state, (found, why)
    return why
