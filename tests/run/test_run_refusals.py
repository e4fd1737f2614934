"""Notebooks that end badly, and usage that is refused before anything runs."""

import shutil
from pathlib import Path

import nbformat
import pytest
from run_cases import CONVERT, ONE, PARAMETERS, attempt, done, finished, go, here, reasons, states, tree, write_notebook  # noqa: F401

from cellkit.errors import UserError
from cellkit.manifest import read_manifest
from cellkit.run.folder import Run
from cellkit.run.notebooks import read_notebooks
from cellkit.run.runner import run_notebooks
from cellkit.run.stale import check

# ---- notebooks that end badly


def fails(here, *cells: str, code: int = 1, **options) -> str:
    """Run a notebook 01 that ends badly and return its recorded error; the copy must tell the truth."""
    write_notebook(here / "notebooks", ONE, [*cells, "stage.done(x=stage.path('x'))"])
    assert go(**options) == code
    assert read_manifest(Path("runs/demo"))["stages"] == {}
    assert tree() == {}
    assert states()[ONE] == ("failed", attempt(ONE)["error"])
    return attempt(ONE)["error"]


def cell_states() -> list[str]:
    copy = nbformat.read(f"runs/demo/notebooks/{ONE}.unfinished.ipynb", as_version=4)
    return [c.metadata.papermill.status for c in copy.cells if c.cell_type == "code" and "tags" in c.metadata]


def test_an_exception_is_shown_with_cell_traceback_and_copy(here, capsys):
    assert fails(here, "stage.path('x').touch()\ndef f():\n    return 1 / 0\nf()") == (
        "failed: ZeroDivisionError: division by zero"
    )
    err = capsys.readouterr().err
    assert f"{ONE}  cell 3/4  failed: ZeroDivisionError: division by zero" in err
    assert "----> 3     return 1 / 0" in err or "return 1 / 0" in err
    assert "\x1b" not in err
    assert f"executed so far: runs/demo/notebooks/{ONE}.unfinished.ipynb" in err
    assert cell_states() == ["completed", "completed", "completed", "failed", "pending"]


def test_a_user_error_is_told_as_it_is_and_ends_with_2(here, capsys):
    error = fails(here, "run.find('labels')", code=2)
    assert error.splitlines()[0].startswith("runs/demo has no 'labels'")
    assert error in capsys.readouterr().err
    assert len(error.splitlines()) == 2


def test_a_dead_kernel_is_a_failure_with_its_exit_code(here, capsys):
    error = fails(here, "import os\nos.kill(os.getpid(), 9)")
    assert error == "the kernel died (exit code 137, SIGKILL: often the machine ran out of memory)"
    assert attempt(ONE)["kernel_exit"] == -9
    assert cell_states() == ["completed", "completed", "completed", "failed", "pending"]
    assert go() == 1  # and again


def test_a_crash_in_compiled_code_tells_where(here, capsys):
    assert "SIGSEGV" in fails(here, "import ctypes\nctypes.string_at(0)")
    assert "Fatal Python error: Segmentation fault" in capsys.readouterr().err


@pytest.mark.parametrize("call", ["import sys; sys.exit(0)", "exit()", "import os; os._exit(0)"])
def test_leaving_before_stage_done_is_a_failure(here, call):
    error = fails(here, call)
    assert error in ("a cell called exit() before stage.done", "the kernel died (exit code 0)")


def test_leaving_after_stage_done_is_not(here):
    write_notebook(here / "notebooks", ONE, ["stage.done()", "quit()", "1 / 0"])
    assert go() == 0
    assert states()[ONE][0] == "fresh"


def test_a_notebook_without_stage_done_is_a_failure(here):
    write_notebook(here / "notebooks", ONE, ["1 + 1"])
    assert go() == 1
    assert attempt(ONE)["error"] == "ended without stage.done"


def test_an_exception_after_stage_done_withdraws_the_stage(here):
    write_notebook(here / "notebooks", ONE, ["stage.done()", "1 / 0"])
    assert go() == 1
    assert reasons("failed", ONE) == "failed after stage.done: ZeroDivisionError: division by zero"
    assert go() == 1


def test_a_stage_started_with_another_section_is_a_failure(here):
    cell = "stage = run.start('01_convert', load_config(config).label)\nstage.done()"
    write_notebook(here / "notebooks", ONE, [cell])
    assert go() == 1
    assert "did not start its stage with the section convert" in attempt(ONE)["error"]


def test_a_cell_that_hangs_is_stopped(here, capsys):
    error = fails(
        here, "import time\ntime.sleep(100)", timeout_s=5
    )  # the cells before it have to end on a busy machine
    assert error == "stopped: the cell took longer than the time allowed"
    assert "time.sleep(100)" in capsys.readouterr().err  # where it hung
    assert cell_states()[-2:] == ["failed", "pending"]


def test_a_failed_repetition_leaves_the_finished_stage_untouched(done):
    before, entry = tree(), read_manifest(Path("runs/demo"))["stages"][ONE]
    torn = "stage.path('records.csv').write_text('torn')\nstage.path('images/a.png').write_text('torn')\n1 / 0"
    path = write_notebook(done / "notebooks", ONE, [torn])
    assert go() == 1
    assert tree() == before
    assert read_manifest(Path("runs/demo"))["stages"][ONE] == entry
    assert Run("runs/demo").find("records").read_text() == "id,seed\na,1\n"
    assert reasons("stale", ONE) == "the notebook changed"
    write_notebook(path.parent, ONE, CONVERT)
    assert reasons("fresh", ONE).startswith("a later attempt failed: failed: ZeroDivisionError")
    assert go() == 0


# ---- bad usage, told before anything runs


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ([], "has 0 cells tagged parameters"),
        ([PARAMETERS, PARAMETERS], "has 2 cells tagged parameters"),
        (["config = 'c'\nrundir = 'r'\noverrides = {}"], "has the parameters config, rundir, overrides"),
        (["config = 'c'\nrun_dir = 'r'\noverrides = dict()"], "holds more than literals"),
        ([PARAMETERS + "\nimport os"], "holds more than literals"),
    ],
)
def test_a_notebook_without_exactly_the_parameters_is_refused(here, parameters, problem):
    write_notebook(here / "notebooks", ONE, ["1"], parameters=parameters)
    with pytest.raises(UserError, match=problem):
        go()
    assert not Path("runs").exists()


def test_notebooks_from_elsewhere_are_refused(here, done):
    with pytest.raises(UserError, match="notebooks are not fetched"):
        run_notebooks("configs/demo.yaml", notebooks="https://example.org/notebooks")
    with pytest.raises(UserError, match="no notebook 01_"):
        run_notebooks("configs/demo.yaml", notebooks="configs")
    Path("executed").mkdir()
    shutil.copy(f"runs/demo/notebooks/{ONE}.ipynb", "executed")
    with pytest.raises(UserError, match="is an executed copy"):
        run_notebooks("configs/demo.yaml", notebooks="executed")


@pytest.mark.parametrize("name", ["-Copy1", " (1)", "_old"])
@pytest.mark.parametrize("empty", [False, True])
def test_a_copy_of_a_notebook_is_said_to_be_one(here, name, empty):
    write_notebook(here / "notebooks", ONE, ["1"])
    copy = Path(f"notebooks/{ONE}{name}.ipynb")
    copy.write_bytes(b"" if empty else Path(f"notebooks/{ONE}.ipynb").read_bytes())
    with pytest.raises(UserError, match=f"seems to be a copy of {ONE}.ipynb(.|\n)*remove it, or rename it"):
        read_notebooks("notebooks")


def test_bad_folders_and_configurations_are_told_at_once(done):
    with pytest.raises(UserError, match="overrides: unknown key 'label.min_area' .did you mean 'min_area_px'"):
        go(overrides={"label.min_area": 3})
    with pytest.raises(UserError, match="run folder 'configs/demo.yaml' cannot be written"):
        run_notebooks("configs/demo.yaml", "configs/demo.yaml", notebooks="notebooks")
    with pytest.raises(UserError, match="cannot be written"):
        run_notebooks("configs/demo.yaml", "configs/demo.yaml/below", notebooks="notebooks")
    with pytest.raises(UserError, match="'configs' is no run folder and holds demo.yaml"):
        run_notebooks("configs/demo.yaml", "configs", notebooks="notebooks")
    with pytest.raises(UserError, match="there is no run folder 'runs/dmo'"):
        check("runs/dmo", notebooks="notebooks")
    Path("runs/demo/manifest.json").write_text('{"format": 1, "sta')
    with pytest.raises(UserError, match="is damaged"):
        go()
    assert go(fresh=True) == 0


def test_a_full_disk_is_told_before_the_run(here, monkeypatch):
    write_notebook(here / "notebooks", ONE, ["1"])
    monkeypatch.setattr("cellkit.manifest.MIN_FREE_BYTES", 10**18)
    with pytest.raises(UserError, match="MB are free"):
        go()
