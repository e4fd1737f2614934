"""The run folder and the runner, with real kernels on tiny notebooks."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
from run_cases import ONE, THREE, TWO, done, finished, go, here, tree, write_notebook  # noqa: F401

from cellkit.files import sha256_tree
from cellkit.manifest import read_manifest
from cellkit.run.folder import Run
from cellkit.run.runner import run_notebooks
from cellkit.run.stale import check

# ---- a good run


def test_a_run_leaves_listed_verified_outputs_and_executed_notebooks(done):
    manifest = read_manifest(Path("runs/demo"))
    assert list(manifest["stages"]) == [ONE, TWO]
    assert manifest["attempts"] == {}
    entry = manifest["stages"][TWO]
    records = manifest["stages"][ONE]["outputs"]["records"]
    assert records == {"path": "records.csv", "sha256": sha256_tree("runs/demo/records.csv")}
    assert entry["inputs"] == {"records": records}
    assert entry["outputs"]["labels"]["sha256"] == sha256_tree("runs/demo/labels")
    assert (entry["status"], entry["device"], entry["config"]["seed"]) == ("finished", "cpu", 1)
    assert entry["versions"]["python"] == sys.version.split()[0]
    assert entry["seconds"] > 0
    assert tree() == {
        "images/a.png": b"pixels",
        "labels/a.tif": b"id,seed\na,1\n" * 2,
        "records.csv": b"id,seed\na,1\n",
    }
    copy = nbformat.read(f"runs/demo/notebooks/{TWO}.ipynb", as_version=4)
    assert [cell.metadata.papermill.status for cell in copy.cells] == ["completed"] * len(copy.cells)
    assert not Path("runs/demo/unfinished").exists()
    run = Run("runs/demo")
    assert run.find("labels") == Path("runs/demo/labels")
    assert run.find_all("l*") == {"labels": Path("runs/demo/labels")}
    assert list(run.stages()) == [ONE, TWO]


def test_a_second_run_does_nothing_says_so_and_is_quick(done):
    code = """
        import sys, time
        from cellkit.run.runner import run_notebooks
        code = run_notebooks("configs/demo.yaml", "runs/demo", notebooks="notebooks")
        heavy = {"torch", "papermill", "nbclient", "nbformat", "IPython"} & set(sys.modules)
        sys.exit(code or (str(heavy) if heavy else int(time.process_time() > 2)))
    """
    before = sha256_tree("runs")
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert f"skip {ONE} (unchanged)" in ended.stderr
    assert "nothing to do: every stage of runs/demo is finished and unchanged" in ended.stderr
    assert ended.stdout == ""
    assert sha256_tree("runs") == before


def test_progress_tells_notebook_cell_elapsed_and_time_left(here, capsys):
    print_ = "import sys\nprint('to stdout')\nprint('no line end', end='', file=sys.stderr)"
    write_notebook(here / "notebooks", ONE, [print_, "stage.done()"], minutes=2)
    write_notebook(here / "notebooks", TWO, ["stage.done()"], minutes=3)
    assert go(timeout_s=float("inf")) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert f"[1/2] {ONE}  cell 3/4  " in err
    assert " left)" not in err  # not forecast, and it never ran here: minutes written into a notebook are no forecast
    assert "\nto stdout\n" in err
    assert "\nno line end\n[1/2]" in err
    assert "warn" not in err.lower()
    assert go(from_="1") == 0
    assert "m" not in capsys.readouterr().err.partition("(about ")[2].partition(" left)")[0]  # as long as last time


def test_paths_with_braces_spaces_and_letters_of_any_kind(here):
    (here / "a {b} ü").mkdir()
    config, run, notebooks = "a {b} ü/c {0}.yaml", "a {b} ü/r {x} \"'", "a {b} ü/n {y}"
    Path(config).write_text("finetune: {steps: 5}\n")
    asserts = 'assert overrides == {"finetune.base": "x{}\\"\\\\ü", "classes": ["a"]}, overrides'
    write_notebook(here / notebooks, ONE, [asserts, "stage.done()"])
    given = {"finetune.base": 'x{}"\\ü', "classes": ["a"]}
    assert run_notebooks(config, run, notebooks=notebooks, overrides=given) == 0
    assert check(run, notebooks=notebooks)[0].state == "fresh"  # configuration and overrides are remembered
    assert check(run, config, notebooks=notebooks)[0].why == 'convert.classes ["a"] -> ["cell"]'


def test_a_notebook_of_any_kernel_or_none_runs_in_this_interpreter_and_its_copy_says_so(here):
    """As VS Code saves one (no language, or no kernelspec at all), and one of a kernel that is not installed here."""
    foreign = {"kernelspec": {"name": "cellpose-gpu", "display_name": "GPU", "language": "R"}}
    unsaid = {"kernelspec": {"name": "python3", "display_name": "x"}, "language_info": {"name": "python"}}
    for name, metadata in {ONE: foreign, TWO: unsaid, THREE: {"language_info": {"name": "python"}}}.items():
        path = write_notebook(here / "notebooks", name, ["stage.done()"])
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"metadata": metadata}))
    assert go() == 0
    for name in (ONE, TWO, THREE):
        copy = json.loads(Path(f"runs/demo/notebooks/{name}.ipynb").read_text())
        told = copy["metadata"]["kernelspec"]
        assert (told["name"], told["language"]) == ("python3", "python")


def test_attack_05_notebook_with_the_command_of_another_kernel(here, monkeypatch):
    """A kernel of the name of ours and one that the notebook names, both installed: neither is started."""
    for name in ("python3", "evil"):
        folder = here / "jupyter" / "kernels" / name
        folder.mkdir(parents=True)
        spec = {"argv": ["touch", str(here / "attacked")], "display_name": name, "language": "python"}
        (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(here / "jupyter"))
    path = write_notebook(here / "notebooks", ONE, ["stage.done()"])
    evil = {"kernelspec": {"name": "evil", "display_name": "evil", "language": "python"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": evil}))
    assert go() == 0 and not (here / "attacked").exists()


def test_quarantined_items_are_told_again_and_end_with_3(here, capsys):
    cells = [
        "from cellkit.errors import Quarantined",
        "stage.quarantine([Quarantined('b.tif', 'truncated')])\nstage.done()",
    ]
    write_notebook(here / "notebooks", ONE, cells)
    assert go() == 3
    assert f"skipped by {ONE}: b.tif: truncated" in capsys.readouterr().err
    assert go() == 3
    assert go(allow_skips=True) == 0
