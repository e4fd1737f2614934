"""The run folder and the runner, with real kernels on tiny notebooks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import pytest

import cellkit.run.notebooks
import cellkit.run.stale
from cellkit.config.reading import load_config
from cellkit.errors import Quarantined, UserError
from cellkit.files import sha256_tree
from cellkit.manifest import finish_commits, read_manifest
from cellkit.run.folder import Run
from cellkit.run.notebooks import read_notebooks
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
    assert "s  (about 4m5" in err  # 2 + 3 minutes less a second or two
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


# ---- what is repeated, and why


def reasons(state: str, stage: str = TWO, **options) -> str:
    """Return why `stage` is in `state`."""
    found, why = states(**options)[stage]
    assert found == state, (found, why)
    return why


def test_everything_is_fresh_whatever_the_times(done):
    for path in Path("runs/demo").rglob("*"):
        os.utime(path, (0, 0))
    assert states() == {ONE: ("fresh", ""), TWO: ("fresh", "")}


def test_another_value_makes_its_stage_stale(done):
    Path("configs/demo.yaml").write_text("seed: 1\nlabel: {min_area_px: 3}\nworkers: 4\n")
    assert states(config_path="configs/demo.yaml")[ONE][0] == "fresh"
    assert reasons("stale", config_path="configs/demo.yaml") == "label.min_area_px 15 -> 3"


def test_another_notebook_makes_its_stage_stale_and_what_reads_from_it(done):
    write_notebook(done / "notebooks", ONE, [*CONVERT, "1 + 1"])
    assert reasons("stale", ONE) == "the notebook changed"
    assert reasons("stale", TWO) == f"its input records comes from {ONE}, which is stale"


def test_other_parameters_and_words_in_a_notebook_change_nothing(done):
    write_notebook(done / "notebooks", TWO, LABEL, parameters=[PARAMETERS.replace("demo", "other")], minutes=5)
    assert states()[TWO][0] == "fresh"


def test_another_package_makes_every_stage_stale(done, monkeypatch):
    monkeypatch.setattr(cellkit.run.stale, "package_sha256", lambda: "other")
    assert reasons("stale", ONE) == "the cellkit package changed"


def test_a_changed_or_missing_output_makes_its_stage_stale(done):
    Path("runs/demo/labels/a.tif").write_text("by hand")
    assert reasons("stale") == "output labels changed (labels)"
    shutil.rmtree("runs/demo/labels")
    assert reasons("stale") == "output labels is missing (labels)"


def test_a_changed_input_makes_the_reader_stale(done):
    Path("runs/demo/records.csv").write_text("tampered")
    assert "input records changed" in reasons("stale")
    with pytest.raises(UserError, match=f"'records' .* is not as {ONE} left it"):
        Run("runs/demo").find("records")


def test_a_changed_input_from_outside_makes_the_reader_stale(done):
    Path("raw").mkdir()
    Path("raw/a").write_text("1")
    write_notebook(done / "notebooks", ONE, ["stage.reads(raw='raw')", "stage.done()"])
    assert run_notebooks("configs/demo.yaml", "runs/raw", notebooks="notebooks", only="1") == 0
    Path("raw/a").write_text("2")
    assert "input raw changed" in check("runs/raw", notebooks="notebooks")[0].why


class Outside:
    """A stage by hand that reads what lies outside the run folder, as the notebooks do; and what becomes of that."""

    def __init__(self, folder: Path, monkeypatch):
        real = cellkit.run.notebooks.read_notebooks
        monkeypatch.setattr("cellkit.run.notebooks.read_notebooks", lambda folder=None: real(folder or "notebooks"))
        monkeypatch.delenv("CELLKIT_DATA", raising=False)
        write_notebook(folder / "notebooks", ONE, ["stage.done()"])
        for name, text in {
            "mine/a.tif": "1",
            "mine/b.tif": "2",
            "w.pt": "w",
            "w.json": "{}",
            "data/A/a.tif": "a",
        }.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        for name in (".zattrs", "0/.zarray", "zarr.json", "0/0"):
            path = folder / "data/A/b.ome.zarr" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        (folder / "data/truth").symlink_to("A")

    def stage(self, read, **settings) -> str:
        """Run a stage that calls `read(stage)`; return why it is stale now, "" if it is fresh."""
        stage = Run("runs/demo").start(ONE, load_config("configs/demo.yaml", settings).convert)
        read(stage)
        stage.done()
        return self.why(**settings)

    def why(self, **settings) -> str:
        state, why = states(config_path="configs/demo.yaml", overrides=settings)[ONE]
        assert (state == "stale") == bool(why)
        return why


@pytest.fixture
def outside(here, monkeypatch):
    return Outside(here, monkeypatch)


def read_corrections(stage):
    from cellkit.cells.dataset import CellDataset
    from cellkit.labelling.annotate import choose_labels

    with pytest.raises(UserError, match="mine"):  # there is no image that they could belong to
        choose_labels(CellDataset([], [], (), Path(), []), [], {}, "mine")


def read_weights(stage):
    from cellkit.fetch.find import find_weights

    find_weights("w.pt")
    find_weights("starter")


def read_data(stage):
    from cellkit.config.places import data_path

    settings = {"data": "data", "convert.source": "microscope"}
    stage.note_reading(data_path(load_config("configs/demo.yaml", settings).convert), "data", by="data")


@pytest.mark.parametrize(
    ("read", "name", "told"),
    [
        (read_corrections, "mine/a.tif", "input corrections {} ({}/mine: a.tif {})"),
        (read_corrections, "mine/later.tif", "input corrections {} ({}/mine: later.tif {})"),
        (read_weights, "w.pt", "input weights w.pt {} ({}/w.pt)"),
        (read_weights, "w.json", "input card of w.pt {} ({}/w.json)"),
        (read_data, "data/A/a.tif", "input data {} ({}/data: A/a.tif {}, truth/a.tif {})"),
        (read_data, "data/A/b.ome.zarr/.zattrs", "A/b.ome.zarr/.zattrs {}"),
        (read_data, "data/A/b.ome.zarr/0/.zarray", "A/b.ome.zarr/0/.zarray {}"),
        (read_data, "data/A/b.ome.zarr/zarr.json", "A/b.ome.zarr/zarr.json {}"),
        (read_data, "data/A/later.tif", "A/later.tif {}"),
        (read_data, "data/truth", "truth/a.tif {}"),
    ],
)
def test_whatever_a_stage_reads_makes_it_stale_and_the_file_is_named(outside, here, read, name, told):
    settings = {"data": "data", "convert.source": "microscope"} if read is read_data else {}
    assert outside.stage(read, **settings) == ""
    path = Path(name)
    words = ["changed" if path.exists() else "is new"]
    if path.is_symlink():
        path.unlink()
        words = ["is gone"]
    else:
        path.write_text("other")
    shown = told.replace("{}/", f"{here}/").replace("input corrections {}", "input corrections changed")
    shown = shown.replace("input data {}", "input data changed").replace("{}", words[0])
    assert shown in outside.why(**settings)
    if words == ["changed"]:
        path.unlink()
        gone = {"w.pt": "input weights w.pt: no weights 'w.pt'", "w.json": "is missing"}.get(name, "is gone")
        assert gone in outside.why(**settings)


def test_another_data_folder_or_other_weights_of_the_same_name_make_stale(outside, here, monkeypatch):
    shutil.copytree("data", "other", symlinks=True)
    monkeypatch.setenv("CELLKIT_DATA", "data")
    read = lambda stage: stage.note_reading(Path("data"), "data", by="data")  # noqa: E731
    assert outside.stage(read) == ""
    monkeypatch.setenv("CELLKIT_DATA", "other")
    assert outside.why() == ""  # the same files elsewhere
    Path("other/A/a.tif").write_text("another")
    assert f"input data changed ({here}/other, was {here}/data: A/a.tif changed" in outside.why()
    assert "input data changed" in outside.why(**{"data": "other", "convert.source": "folder"})
    monkeypatch.setenv("CELLKIT_DATA", "nowhere")
    assert outside.why() == "input data: CELLKIT_DATA is 'nowhere', no such folder"
    monkeypatch.delenv("CELLKIT_DATA")
    assert outside.why() == ""  # nothing names another one

    from cellkit.fetch.find import find_weights

    monkeypatch.setattr(
        "cellkit.fetch.fetch.fetched_weights", lambda name: Path(os.environ["CELLKIT_WEIGHTS"]) / "w.pt"
    )
    monkeypatch.setenv("CELLKIT_WEIGHTS", str(here))
    assert outside.stage(lambda stage: find_weights("cyto3")) == ""
    monkeypatch.setenv("CELLKIT_WEIGHTS", str(here / "mine"))
    Path("mine/w.pt").write_text("other weights")
    assert f"input weights cyto3 changed ({here}/mine/w.pt, was {here}/w.pt)" in outside.why()


def test_a_file_changed_while_the_stage_runs_is_told_at_once_and_makes_it_stale(outside, capsys):
    def read(stage):
        read_corrections(stage)
        Path("mine/a.tif").write_text("changed meanwhile")

    assert "a.tif changed" in outside.stage(read)
    assert f"input corrections changed while {ONE} ran" in capsys.readouterr().err


def test_relative_paths_of_a_run_count_from_where_it_began(done, here):
    """The folder named by a relative path is the one the run read, from wherever the run is checked."""
    code = ["from cellkit.manifest import note_reading", "note_reading('mine')", "stage.done()"]
    Path("mine").mkdir()
    Path("mine/a").write_text("1")
    write_notebook(here / "notebooks", ONE, code)
    assert go(only="1") == 0
    books, run = Path("notebooks").absolute(), Path("runs/demo").absolute()
    os.chdir("/")
    assert check(run, notebooks=books)[0].state == "fresh"
    (here / "mine/a").write_text("2")
    assert "a changed" in check(run, notebooks=books)[0].why


def test_files_of_the_run_folder_that_nobody_lists_are_inputs_too(done):
    """As a report reads them: settings of earlier stages, a file beside an output, one that is not there yet."""
    from cellkit.manifest import note_reading

    def read():
        stage = Run("runs/demo").start(THREE, {"seed": 1})
        for name in ("images/a.png", "beside.txt", "later.txt", "own.txt"):
            note_reading(Path("runs/demo") / name)
        stage.note_settings()
        stage.done(own=stage.path("own.txt")) if stage.path("own.txt").write_text("own") else None
        return stage

    Path("runs/demo/beside.txt").write_text("1")
    stage = read()
    inputs = stage._entry["inputs"]
    assert sorted(inputs) == ["beside.txt", "images", "later.txt", "settings"] and inputs["later.txt"]["sha256"] is None
    note_reading(Path("runs/demo/images"))  # the stage is done: nothing to note it for
    write_notebook(done / "notebooks", THREE, ["stage.done()"])
    reason = lambda: dict(states())[THREE][1]  # noqa: E731
    assert "input" not in reason()
    Path("runs/demo/later.txt").write_text("now")
    Path("runs/demo/beside.txt").write_text("2")
    assert "input beside.txt changed (beside.txt)" in reason() and "input later.txt changed" in reason()
    manifest = read_manifest(Path("runs/demo"))
    manifest["stages"][ONE]["config"]["seed"] = 7
    Path("runs/demo/manifest.json").write_text(json.dumps(manifest))
    assert "input settings changed (manifest.json)" in reason()


def test_the_manifest_says_what_networks_computed_in_and_what_a_stage_took(tmp_path):
    pytest.importorskip("torch")
    for precision in ("float32", "bfloat16"):
        Run(tmp_path / "run").start("own", {"precision": precision}).done()
        entry = read_manifest(tmp_path / "run")["stages"]["own"]
        assert entry["arithmetic"]["number_type"] == precision
        assert entry["processor_s"] > 0 and entry["peak_bytes"] > 10**7


def test_other_versions_are_noted_and_make_nothing_stale(done, said, monkeypatch):
    manifest = read_manifest(Path("runs/demo"))
    manifest["stages"][ONE]["versions"] |= {"torch": "1.0", "gone": "2.0"}
    Path("runs/demo/manifest.json").write_text(json.dumps(manifest))
    real = read_notebooks
    monkeypatch.setattr(cellkit.run.stale, "read_notebooks", lambda folder=None: real("notebooks"))
    code, out, _ = said("check", "runs/demo", "--json")
    one, two = json.loads(out)["stages"]
    assert code == 0 and one["state"] == "fresh" and one["note"].startswith("torch 1.0, now ") and two["note"] == ""
    assert one["note"].endswith("gone 2.0, now missing")
    assert f"         made with {one['note']}" in said("check", "runs/demo")[1]


def test_an_output_more_makes_stale_what_reads_all_of_its_kind(here, monkeypatch):
    real = cellkit.run.notebooks.read_notebooks  # a stage started by hand looks beside the package first
    monkeypatch.setattr("cellkit.run.notebooks.read_notebooks", lambda folder=None: real(folder or "notebooks"))

    def convert(**names):
        stage = Run("runs/demo").start(ONE, load_config("configs/demo.yaml").convert)
        for name in names.values():
            stage.path(name).write_text("same")
        stage.done(**{key: stage.path(name) for key, name in names.items()})

    for name in (ONE, TWO):
        write_notebook(here / "notebooks", name, ["stage.done()"])
    convert(records="r")
    run = Run("runs/demo")
    stage = run.start(TWO, load_config("configs/demo.yaml").label)
    assert run.find_all("truth*") == {}
    assert list(run.find_all("rec*")) == ["records"]
    stage.done(nothing=None)
    assert run.stages()[TWO]["outputs"] == {}
    assert states(config_path="configs/demo.yaml")[TWO] == ("fresh", "")
    convert(records="r", truth="t")
    assert reasons("stale", config_path="configs/demo.yaml") == "it read no truth*, now truth"


def test_the_keys_of_a_notebook_are_told_without_running_it(here):
    cells = [
        "files = {'summary': 1}\nfor split in 'ab':\n    files[f'coco_{split}'] = split",
        "%matplotlib inline\nstage.done(x=1)",
        "stage.done(labels=1, **files)",
        "run = Run(run_dir)\nimages = CellDataset.of_run(run)\nrun.find('truth')",
    ]
    write_notebook(here / "notebooks", ONE, cells)
    (book,) = read_notebooks("notebooks")
    assert book.keys == ("labels", "summary", "coco_*")
    assert book.reads == ("records", "images", "truth")


def test_unchanged_outputs_of_a_repeated_stage_let_the_next_be_skipped(done, capsys):
    write_notebook(done / "notebooks", ONE, [*CONVERT[:-1], "1 + 1", CONVERT[-1]])
    assert go() == 0
    err = capsys.readouterr().err
    assert f"{ONE}  because the notebook changed" in err
    assert f"skip {TWO} (unchanged)" in err


def test_what_was_changed_by_hand_is_kept_aside_when_its_stage_is_repeated(done, capsys):
    Path("runs/demo/labels/a.tif").write_text("corrected by hand")
    assert go() == 0
    assert Path("runs/demo/labels/a.tif").read_text() == "id,seed\na,1\n" * 2
    assert Path("runs/demo/set_aside/1/labels/a.tif").read_text() == "corrected by hand"
    assert "labels was changed by hand: kept as runs/demo/set_aside/1/labels" in capsys.readouterr().err


def test_from_and_only_repeat_what_they_name_and_keep_the_rest(done, capsys):
    Path("configs/demo.yaml").write_text("seed: 2\n")
    first = read_manifest(Path("runs/demo"))["stages"]
    assert go(only="02", overrides={"label.min_area_px": 3}) == 0
    second = read_manifest(Path("runs/demo"))["stages"]
    assert second[ONE] == first[ONE]
    assert second[TWO]["config"]["min_area_px"] == 3
    assert f"keep {ONE}, although it is stale: convert.seed 1 -> 2" in capsys.readouterr().err
    assert go(from_=ONE) == 0
    assert tree()["labels/a.tif"] == b"id,seed\na,2\n" * 2


def test_from_and_only_need_what_comes_before(here):
    write_notebook(here / "notebooks", ONE, CONVERT)
    write_notebook(here / "notebooks", TWO, LABEL)
    with pytest.raises(UserError, match=f"runs/demo has no finished {ONE} before {TWO}"):
        go(only="2")
    with pytest.raises(UserError, match="no notebook is called '7'"):
        go(from_="7")
    with pytest.raises(UserError, match="exclude each other"):
        go(from_="1", only="1")


def test_fresh_deletes_what_the_run_made_and_nothing_else(done):
    Path("runs/demo/images/a.png").write_text("painted over")
    Path("runs/demo/own notes.txt").write_text("mine")
    write_notebook(done / "notebooks", ONE, ["stage.done(x=stage.path('x'))"])
    assert go(fresh=True) == 2
    assert tree() == {"own notes.txt": b"mine", "set_aside/1/images/a.png": b"painted over"}
    assert read_manifest(Path("runs/demo"))["stages"] == {}
    assert sorted(path.name for path in Path("runs/demo/notebooks").iterdir()) == [f"{ONE}.unfinished.ipynb"]


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
    error = fails(here, "import time\ntime.sleep(100)", timeout_s=1.5)
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


# ---- a stage started by hand, as in JupyterLab


def test_a_stage_by_hand(here):
    run = Run("runs/demo")
    with pytest.raises(UserError, match="there is no run folder 'runs/demo'"):
        run.find("records")
    stage = run.start(ONE, {"seed": 1})
    stage.folder.joinpath("weights.bin").write_bytes(b"w")
    stage.folder.joinpath("weights.json").write_bytes(b"{}")
    stage.quarantine([Quarantined("b.tif", "truncated")])
    assert tree() == {}
    stage.done(checkpoint=stage.folder / "weights.bin")
    assert tree() == {f"{ONE}/weights.bin": b"w", f"{ONE}/weights.json": b"{}"}
    entry = run.stages()[ONE]
    assert list(entry["also"]) == [f"{ONE}/weights.json"]
    assert entry["quarantined"] == [{"item": "b.tif", "reason": "truncated"}]
    assert run.find("checkpoint") == run.folder / ONE / "weights.bin"

    stage = run.start(TWO, {"seed": 1})
    with pytest.raises(UserError, match=r"runs/demo has no 'chekpoint' \(did you mean 'checkpoint'\?\)"):
        run.find("chekpoint")
    (run.folder / "in place.txt").write_text("listed, not moved")
    stage.done(here=run.folder / "in place.txt")
    stage.done(here=run.folder / "in place.txt")  # the cell run twice
    assert run.find("here").read_text() == "listed, not moved"


@pytest.mark.parametrize(
    ("key", "name", "problem"),
    [
        ("checkpoint", "c", f"'checkpoint' is already listed by {ONE}"),
        ("x", f"{ONE}/weights.bin", f"'{ONE}/weights.bin' already belongs to {ONE}"),
        ("x", "", "nothing was written"),
        ("x", "../../../../configs", "outside the run folder"),
        ("x", "notebooks/x", "keeps for itself"),
        ("x", "../../manifest.json", "keeps for itself"),
    ],
)
def test_outputs_in_the_wrong_place_are_refused_and_nothing_moves(here, key, name, problem):
    run = Run("runs/demo")
    stage = run.start(ONE, {})
    stage.path(f"{ONE}/weights.bin").write_bytes(b"w")
    stage.done(checkpoint=stage.folder / "weights.bin")
    stage = run.start(TWO, {})
    path = stage.path(name) if name else stage.root / "nothing"
    if name and not path.exists():
        path.touch()
    good = stage.path("good.txt")
    good.touch()
    with pytest.raises(UserError, match=problem):
        stage.done(**{key: path, "good": good})
    assert list(run.stages()) == [ONE]
    assert tree() == {f"{ONE}/weights.bin": b"w"}


def test_a_folder_and_a_file_in_it_may_both_be_listed(here):
    run = Run("runs/demo")
    for text in ("1", "2", "2"):
        stage = run.start(ONE, {})
        stage.path("labels/labels.json").write_text(text)
        stage.path("labels/a.tif").write_text(text)
        stage.done(labels=stage.path("labels/labels.json"), label_images=stage.path("labels"))
    assert tree() == {"labels/a.tif": b"2", "labels/labels.json": b"2"}
    assert run.find("labels").read_text() == run.find("label_images").joinpath("a.tif").read_text()


def test_a_repeated_stage_drops_what_it_no_longer_makes(here):
    run = Run("runs/demo")
    for names in (["a", "b/c"], ["a"]):
        stage = run.start(ONE, {})
        for name in names:
            stage.path(name).write_text(str(names))
        stage.done(**{name[0]: stage.path(name) for name in names})
    assert tree() == {"a": b"['a']"}


def test_unfinished_work_is_kept_for_the_same_ground_only(done):
    def leftover(section, change=None) -> bool:
        run = Run("runs/demo")
        stage = run.start(THREE, section)
        run.find("records")
        found = (stage.folder / "resume.bin").exists()
        (stage.folder / "resume.bin").touch()
        return found

    assert not leftover({"steps": 1})
    assert leftover({"steps": 1})
    assert not leftover({"steps": 2})
    Path("runs/demo/records.csv").write_text("other")
    manifest = read_manifest(Path("runs/demo"))
    manifest["stages"][ONE]["outputs"]["records"]["sha256"] = sha256_tree("runs/demo/records.csv")
    Path("runs/demo/manifest.json").write_text(json.dumps(manifest))
    assert not leftover({"steps": 2})


# ---- several processes, signals and kills


def spawn(code: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True, **options)


RUN = """
import sys
from cellkit.run.runner import run_notebooks
sys.exit(run_notebooks("configs/demo.yaml", "runs/demo", notebooks="notebooks"))
"""
SLOW = [
    "import os, pathlib, time",
    "pathlib.Path('pid').write_text(str(os.getpid()))\nif not pathlib.Path('quick').exists(): time.sleep(100)",
    *CONVERT,
]


def wait_for(test, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not test():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def kernel_is_gone() -> bool:
    import psutil

    pid = int(Path("pid").read_text())
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def written(name: str) -> bool:
    return Path(name).exists() and Path(name).read_text() != ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_130_and_says_so(here, number):
    write_notebook(here / "notebooks", ONE, SLOW)
    process = spawn(RUN)
    wait_for(lambda: written("pid"))
    process.send_signal(number)
    assert process.wait(20) == 130
    assert "interrupted in cell 4" in process.stderr.read()
    process.stderr.close()
    assert attempt(ONE)["status"] == "interrupted"
    assert reasons("failed", ONE) == "interrupted in cell 4"
    assert kernel_is_gone()


def test_an_interrupt_while_the_kernel_starts(here):
    write_notebook(here / "notebooks", ONE, SLOW)
    process = spawn(RUN)
    wait_for(lambda: Path("runs/demo/manifest.json").exists())
    time.sleep(0.6)  # papermill is imported or the kernel is starting
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.stderr.close()
    assert read_manifest(Path("runs/demo"))["stages"] == {}


def test_killing_the_runner_ends_the_kernel_and_a_repetition_finishes(here):
    write_notebook(here / "notebooks", ONE, SLOW)
    process = spawn(RUN)
    wait_for(lambda: written("pid"))
    assert "running now" in reasons("failed", ONE)
    process.kill()
    process.wait()
    process.stderr.close()
    Path("quick").touch()
    assert go() == 0  # at once: waits for the orphaned kernel to go
    assert kernel_is_gone() or int(Path("pid").read_text()) != process.pid
    assert tree()["records.csv"] == b"id,seed\na,1\n"
    assert states() == {ONE: ("fresh", "")}


def test_a_second_writer_is_refused_and_told_who_writes(here):
    write_notebook(here / "notebooks", ONE, SLOW)
    process = spawn(RUN)
    wait_for(lambda: written("pid"))
    for second in (go, lambda: Run("runs/demo").start(ONE, {})):
        with pytest.raises(UserError, match=f"'runs/demo' is being written by process {process.pid} on "):
            second()
    process.send_signal(signal.SIGINT)
    process.wait()
    process.stderr.close()


BY_HAND = """
import os, sys
from cellkit.run.folder import Run
renames, fatal = 0, int(sys.argv[1])
def count(event, arguments):
    global renames
    if event == "os.rename" and (renames := renames + 1) == fatal:
        os.kill(os.getpid(), 9)
stage = Run("runs/demo").start("01_convert", {"version": 2})
for name in ("a.txt", "b/c.txt", "d/e.txt", "d/f.txt"):
    stage.path(name).write_text("new")
sys.addaudithook(count)
stage.done(a=stage.path("a.txt"), b=stage.root / "b")
print(renames)
"""


def test_killed_at_any_point_of_stage_done_it_is_all_there_or_none(here):
    run = Run("runs/demo")
    stage = run.start(ONE, {"version": 1})
    for name in ("a.txt", "b/c.txt", "d/e.txt", "old.txt"):
        stage.path(name).write_text("old")
    stage.done(a=stage.path("a.txt"), b=stage.root / "b", old=stage.path("old.txt"))
    old = tree()
    new = dict.fromkeys(("a.txt", "b/c.txt", "d/e.txt", "d/f.txt"), b"new")
    shutil.copytree("runs/demo", "runs/before")
    seen, fatal, code = [], 0, -9
    while code == -9:
        fatal += 1
        shutil.rmtree("runs/demo")
        shutil.copytree("runs/before", "runs/demo")
        code = subprocess.run(
            [sys.executable, "-c", BY_HAND, str(fatal)], stdout=subprocess.DEVNULL, timeout=60
        ).returncode
        before = read_manifest(Path("runs/demo"))["stages"][ONE]["config"]["version"]
        assert before == 1 or tree() == new  # listed means finished
        finish_commits(Path("runs/demo"))  # what the next writer does first
        version = read_manifest(Path("runs/demo"))["stages"][ONE]["config"]["version"]
        assert tree() == {1: old, 2: new}[version]
        seen.append(version)
    assert code == 0
    assert fatal > 5
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}
