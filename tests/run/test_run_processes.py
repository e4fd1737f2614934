"""Several processes, signals and kills; stages started by hand."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from run_cases import CONVERT, ONE, THREE, TWO, attempt, done, finished, go, here, reasons, states, tree, write_notebook  # noqa: F401

from cellkit.errors import Quarantined, UserError
from cellkit.files import sha256_tree
from cellkit.manifest import finish_commits, read_manifest
from cellkit.run.folder import Run

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
    assert "running now" in reasons("missing", ONE)
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
