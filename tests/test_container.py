"""The Containerfile: clean to its linter, and its steps run in a fresh folder, with what it copies and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from repo_cases import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from lock_for import TORCH, blocks, lock_for  # noqa: E402

TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements/lock.txt").read_text(encoding="utf-8")


def steps() -> list[tuple[str, str]]:
    """Return the instructions and their arguments, lines that go on joined."""
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def test_the_linter_has_nothing_to_say():
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not linter.is_file():
        pytest.skip("hadolint has no build for this system")
    done = subprocess.run([linter, "--no-color", ROOT / "Containerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_takes_a_device_runs_as_nobody_special_and_names_no_address():
    said = steps()
    assert ("ARG", "DEVICE=cpu") in said and ("ARG", 'TORCH_INDEX=""') in said
    assert ("USER", "1000") in said and said[-2] == ("ENTRYPOINT", '["cellkit"]')
    assert "://" not in TEXT


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_lock_of_a_device_is_part_of_the_lock(device):
    names = [name for name, _ in blocks(lock_for(device, LOCK))]
    assert ("triton" in names) == (device == "cuda")
    assert {*TORCH, "nvidia-cublas", "numpy", "cellpose"} <= set(names)
    assert set(lock_for(device, LOCK).splitlines()) <= set(LOCK.splitlines())
    assert device == "cpu" or lock_for(device, LOCK) == LOCK


def test_torch_from_elsewhere_is_the_same_version():
    rest = {name for name, _ in blocks(lock_for("cpu", LOCK, "--no-torch"))}
    assert not [name for name in rest if name.startswith("nvidia")] and not rest & set(TORCH)
    pins = lock_for("cpu", LOCK, "--only-torch").splitlines()
    assert [pin.partition("==")[0] for pin in pins] == list(TORCH) and all(f"{pin} \\" in LOCK for pin in pins)


def copied(folder: Path, sources: list[str], to: str) -> None:
    """Copy as COPY does, what the .dockerignore leaves."""
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in sources:
        assert any(source == one or source.startswith(f"{one}/") for one in kept), (
            f"{source} is not sent to the builder"
        )
        target = folder / to / (Path(source).name if to.endswith("/") else "")
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__", "runs"))
        else:
            shutil.copy(ROOT / source, target)


@pytest.mark.slow
def test_its_steps_build_a_cellkit_that_runs(tmp_path):
    """Every step of the build but the download of the lock, for which our own packages stand."""
    work, place, locks = tmp_path / "src", tmp_path / "opt", tmp_path / "src/lock"
    work.mkdir()
    env = {
        "PATH": f"{place}/bin:{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "DEVICE": "cpu",
        "TORCH_INDEX": "",
    }
    downloads = 0
    for name, words in steps()[: [k for k, step in enumerate(steps()) if step[0] == "FROM"][1]]:
        words = re.sub(r"(?<!\S)/cellkit(?=/|\s|$)|(?<==)/cellkit(?=/)", str(place), words)
        if name == "COPY":
            *sources, to = words.split()
            copied(work, sources, to)
        elif name == "RUN" and "--require-hashes" in words:
            downloads += 1
            assert (locks / "lock.txt").read_text() == lock_for("cpu", LOCK)
            (site,) = place.glob("lib/python*/site-packages")
            for own in site.glob("setuptools*"):  # an environment of Python 3.11 has one; the lock's takes its place
                shutil.rmtree(own)
            (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        elif name == "RUN":
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", words], cwd=work, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-2000:]
    assert downloads == 1
    made = subprocess.run([place / "bin/cellkit", "--help"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert made.returncode == 0 and "predict" in made.stdout
    where = [place / "bin/python", "-c", "import cellkit; print(cellkit.__file__)"]
    assert subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True).stdout.startswith(str(place))


def test_ci_builds_it_for_both_devices_and_finds_cells_in_it():
    flow = yaml.safe_load((ROOT / ".github/workflows/container.yml").read_text())
    (job,) = flow["jobs"].values()
    assert job["strategy"]["matrix"]["device"] == ["cpu", "cuda"]
    said = " ".join(step.get("run", "") for step in job["steps"])
    assert "hadolint Containerfile" in said and "docker build" in said and "predict starter_light" in said
    assert not re.search(r"secrets\.|docker (push|login)", said)


def test_what_is_copied_is_all_that_is_sent():
    sources = [
        word for name, words in steps() if name == "COPY" and "--from" not in words for word in words.split()[:-1]
    ]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert not [one for one in kept if not any(fnmatch(one, f"{source}*") for source in sources)]
