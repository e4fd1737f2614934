"""Faults of runs: memory, disks, kernels, ports, other writers; the table of all rows is in test_faults.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import tifffile
import torch
from fault_cases import CELL, GREY, coco_file, refused  # noqa: F401
from repo_cases import ROOT

from cellkit.errors import UserError
from cellkit.files import sha256_tree
from cellkit.models import sam_maps

# ---- row 37: memory ------------------------------------------------------------------------------------------------


class Narrow:
    """A network that holds so many squares at a time; what it answers is what it was shown."""

    def __init__(self, most: int):
        self.most, self.seen = most, []
        self.arithmetic = self

    def autocast(self):
        return torch.no_grad()

    def placed(self, squares):
        return squares

    def __call__(self, squares):
        self.seen.append(len(squares))
        if len(squares) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return squares


@pytest.mark.parametrize("most", [4, 3, 1])
def test_row_37_squares_that_do_not_fit_are_shown_fewer_at_a_time(most):
    squares = [torch.full((1, 2, 2), float(k)) for k in range(7)]
    one, network = sam_maps._Image(None, None), Narrow(most)
    sam_maps._run(network, [(one, square) for square in squares])
    assert torch.equal(torch.stack(one.found), torch.stack(squares)) and max(network.seen[1:]) < 7


def test_row_37_one_square_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        sam_maps._run(Narrow(0), [(sam_maps._Image(None, None), torch.zeros(1, 2, 2))])


# ---- row 38: a full disk -------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 kB, and a function that leaves so many pages of 4 kB free on it."""
    place = tmp_path / "disk"
    place.mkdir()
    made = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", place], capture_output=True)
        if shutil.which("mount")
        else None
    )
    if made is None or made.returncode:
        pytest.skip("nobody but root may mount a small file system; test_row_51_a_limit_met_by_real_files stands in")
    ballast = place / ".ballast"

    def leave(pages: int) -> None:
        ballast.unlink(missing_ok=True)
        about = os.statvfs(place)
        with open(ballast, "wb") as file:
            size = (about.f_bavail - pages) * about.f_bsize
            if size > 0:
                os.posix_fallocate(file.fileno(), 0, size)

    yield place, leave
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("command", ["convert", "predict", "labels", "coco", "submit", "measure"])
def test_row_38_a_disk_that_is_full_at_every_write(said, tmp_path, small_disk, command):
    """With ever more room, page by page: refused in two lines and what was there stays, or done; in the end the same files."""
    place, leave = small_disk
    (tmp_path / "in").mkdir()
    for k in range(2):
        tifffile.imwrite(tmp_path / "in" / f"{k}.tif", GREY)
    truth = coco_file(tmp_path / "t.json", CELL)
    given = {
        "convert": lambda out: [tmp_path / "in", "--nuclei", 0, "-o", out / "a"],
        "predict": lambda out: ["threshold", tmp_path / "in", "--nuclei", 0, "-o", out / "a.json", "--labels", out / "b"],
        "labels": lambda out: [truth, "-o", out / "a"], "coco": lambda out: [truth, "-o", out / "a.json"],
        "submit": lambda out: [truth, "--profile", "sartorius", "-o", out / "a.csv"],
        "measure": lambda out: [tmp_path / "in", tmp_path / "labels", "-o", out / "a.csv"],
    }[command]  # fmt: skip
    anyway = ["--force"] if command in ("convert", "predict", "measure") else []  # else their forecast refuses first
    if command == "measure":
        assert (
            said(
                "predict",
                "threshold",
                tmp_path / "in",
                "--nuclei",
                0,
                "-o",
                tmp_path / "f.json",
                "--labels",
                tmp_path / "labels",
            )[0]
            == 0
        )
    files = lambda folder: {  # noqa: E731
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".")
    }
    (tmp_path / "whole").mkdir()
    assert said(command, *given(tmp_path / "whole"), *anyway)[0] == 0
    whole, codes, before = files(tmp_path / "whole"), [], {}
    for pages in range(40):
        leave(pages)
        code, out, err = said(command, *given(place), *anyway)
        codes.append(code)
        now = files(place)
        if code == 0:
            break
        assert (code, out) == (2, "") and "Traceback" not in err and "repeat the command" in err, err
        same = {name: content for name, content in now.items() if whole.get(name) == content or name not in whole}
        assert {**before, **same} == now, "half of a file, or what was there is gone"
        assert not list(place.rglob(".tmp-*")), "left behind"
        before = now
    timed = re.compile(rb'"(date|seconds|made)[^,}]*|\d\d\d\d-\d\d-\d\dT[\d:+]*')
    assert codes[-1] == 0 and len(codes) > 1, codes
    assert {n: timed.sub(b"", c) for n, c in now.items()} == {n: timed.sub(b"", c) for n, c in whole.items()}


def test_row_38_a_stage_and_a_checkpoint_on_a_disk_that_is_full(small_disk, monkeypatch):
    """Of a run folder the finished stage stays, of a checkpoint the old one, until the new ones are whole."""
    from cellkit.manifest import finish_commits, read_manifest, release
    from cellkit.models.training_state import save_tensors
    from cellkit.run.folder import Run

    monkeypatch.delenv("CELLKIT_RUNNER", raising=False)
    monkeypatch.setattr("cellkit.manifest.MIN_FREE_BYTES", 0)
    place, leave = small_disk
    run = place / "run"

    def make(version: int) -> None:
        stage = Run(run).start("01_convert", {"version": version})
        save_tensors(stage.path("m.safetensors"), {"w": torch.full((3000,), float(version))}, {})
        stage.path("b.txt").write_text(str(version) * 5000)
        stage.done(model=stage.path("m.safetensors"), b=stage.path("b.txt"))

    make(1)
    seen = []
    for pages in range(40):
        leave(pages)
        try:
            make(2)
            version = 2
        except (OSError, UserError):
            release(run)
            leave(60)
            finish_commits(run)
            version = read_manifest(run)["stages"]["01_convert"]["config"]["version"]
        seen.append(version)
        leave(60)
        found = Run(run).find("model"), Run(run).find("b")  # verified by their hashes
        assert found[1].read_text() == str(version) * 5000
        if version == 2:
            break
    assert seen[-1] == 2 and seen.count(1) > 3


def test_row_38_a_run_on_a_disk_without_room_is_refused_before_it_begins(small_disk, refused, tmp_path):
    place, _ = small_disk
    (tmp_path / "c.yaml").write_text("name: x\n")
    assert "MB are free at" in refused("run", tmp_path / "c.yaml", "--run", place / "run")
    assert not (place / "run").exists()


# ---- rows 40, 47 and 5: versions in which holes are closed -------------------------------------------------------------

LEAST = {
    "torch": (2, 10),
    "nbconvert": (7, 17, 1),
    "jupyter-server": (2, 20),
    "pillow": (12, 3),
    "filelock": (3, 20, 1),
}


@pytest.mark.parametrize("name", LEAST)
def test_row_40_and_47_no_version_is_locked_that_has_a_known_hole(name):
    found = re.findall(rf"^{name}==([\d.]+)", (ROOT / "requirements" / "lock.txt").read_text(), re.MULTILINE)
    assert found and all(tuple(map(int, version.split("."))) >= LEAST[name] for version in found)


def test_row_40_nothing_unpickles_what_it_reads():
    """torch.load by ``weights_only`` alone; pickle for what this very run wrote; numpy's objects are only written."""
    for path in sorted((ROOT / "cellkit").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, f"{path}: {call}"
        assert not re.search(
            r"load_state_dict_from_url|torch\.hub|\bdill\b|joblib\.load|np\.load\([^)]*allow_pickle=True", text
        ), path
        own = (
            path.name == "processes.py" or path.parent.name == "cluster"
        )  # of a training, of a cluster: keys in SECURITY.md
        assert not re.search(r"pickle\.loads?\(", text) or own, path
        assert not re.search(r"yaml\.(unsafe_|full_)?load\(", text) or path.name == "reading.py", path


# ---- rows 53 to 57 ---------------------------------------------------------------------------------------------------


def test_row_53_a_clock_set_back_changes_nothing(said, tmp_path, monkeypatch):
    """Files from tomorrow, and a clock that goes back between and during commands: the same files, nothing done again."""
    (tmp_path / "in").mkdir()
    for k in range(2):
        tifffile.imwrite(tmp_path / "in" / f"{k}.tif", GREY + k)
        os.utime(tmp_path / "in" / f"{k}.tif", (4e9, 4e9))
    commands = {
        "png": ["convert", tmp_path / "in", "--nuclei", 0, "-o", tmp_path / "png"],
        "f.json": ["predict", "threshold", tmp_path / "in", "--nuclei", 0, "-o", tmp_path / "f.json"],
    }
    for name, command in commands.items():
        assert said(*command)[0] == 0
        before = sha256_tree(tmp_path / name)
        real = time.time
        with monkeypatch.context() as patched:
            back = iter(range(10**9))
            patched.setattr(time, "time", lambda: real() - 1e8 - 60 * next(back))  # noqa: B023
            code, out, err = said(*command)
        assert code == 0 and "Traceback" not in err and (sha256_tree(tmp_path / name) == before), name


LISTENS = """
import os, psutil
ports = [c.laddr for c in psutil.Process().net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
assert not [a for a in ports if a.ip not in ("127.0.0.1", "::1")], ports
assert os.name != "posix" or len(ports) <= 1, ports  # ipykernel's, for what forked processes print: it asks for a secret
import ssl
assert ssl._create_default_https_context is ssl.create_default_context
stage.done()
"""


def test_row_55_and_56_a_run_listens_on_no_port_and_certificates_stay_verified(tmp_path, monkeypatch):
    sys.path.append(str(ROOT / "tests" / "run"))
    from run_cases import ONE, go, write_notebook

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELLKIT_RUNNER", raising=False)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text("seed: 1\n")
    write_notebook(tmp_path / "notebooks", ONE, ["import cellkit.fetch.download, cellkit.predict.files", LISTENS])
    assert go() == 0


def test_row_54_a_process_of_a_training_that_dies_ends_all_of_them(tmp_path, monkeypatch, drawn):
    """As a GPU that falls out: no half of a training is taken for a whole one."""
    from cellkit.models.shared import processes

    folder = tmp_path / "mine" / "models"
    folder.mkdir(parents=True)
    monkeypatch.setattr(processes, "check_processes", lambda count: None)
    real = subprocess.Popen
    dies = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(processes.subprocess, "Popen", lambda command, **how: real(dies, **how))
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="a process of the training ended with exit status -9"):
        processes.train_on(2, "threshold", drawn, drawn, {}, tmp_path / "out")
    assert time.monotonic() - begun < 60 and list((tmp_path / "out").iterdir()) == []
