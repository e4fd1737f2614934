"""Where a notebook is hosted, its second cell installs cellkit by the lock; elsewhere it does nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from repo_cases import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
REPOSITORY = re.search(
    r'^Repository = "https://github.com/(\S+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
)[1]
sys.path.insert(0, str(ROOT / "scripts"))
from lock_for import blocks  # noqa: E402


def cells_of(path: Path) -> dict[str, str]:
    return {cell["id"]: "".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_its_buttons_and_installs_itself(path):
    cells = cells_of(path)
    words, code = cells[f"{path.stem[:2]}-host"], cells[f"{path.stem[:2]}-install"]
    place = f"{REPOSITORY}/blob/main/notebooks/{path.name}"
    assert f"https://colab.research.google.com/github/{place})" in words
    assert f"https://kaggle.com/kernels/welcome?src=https://github.com/{place})" in words
    assert f"https://github.com/{REPOSITORY} &&" in code and code == cells_of(NOTEBOOKS[0])["01-install"]
    assert list(cells).index(f"{path.stem[:2]}-install") < 5, "before anything of cellkit is imported"


def test_the_readme_has_both_buttons():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (
        len(re.findall(rf"\(https://\S+github(?:\.com)?/{REPOSITORY}/blob/main/notebooks/01_convert\.ipynb\)", readme))
        == 2
    )


def run_cell(folder: Path, **env: str) -> list[str]:
    """Run the cell in a folder, with a git and an sh that only note what they were asked."""
    tools = folder.parent / "tools"
    tools.mkdir()
    for name, act in (("git", "mkdir -p cellkit"), ("sh", ":")):
        (tools / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {folder.parent}/asked.txt\n{act}\n')
        (tools / name).chmod(0o755)
    code = cells_of(NOTEBOOKS[0])["01-install"].replace("shell=True", "shell=True, executable='/bin/bash'")
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("COLAB_", "KAGGLE_"))}
    env = plain | {"PATH": f"{tools}:{os.environ['PATH']}", **env}
    done = subprocess.run(
        [sys.executable, "-c", code + "\nprint(os.getcwd())"], cwd=folder, env=env, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    asked = folder.parent / "asked.txt"
    return [*(asked.read_text().splitlines() if asked.exists() else []), Path(done.stdout.decode().strip()).name]


@pytest.mark.parametrize("variable", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"])
def test_hosted_the_cell_fetches_and_installs(variable, tmp_path):
    (tmp_path / "content").mkdir()
    asked = run_cell(tmp_path / "content", **{variable: "x"})
    assert asked == [f"git clone --depth 1 https://github.com/{REPOSITORY}", "sh cellkit/scripts/hosted.sh", "cellkit"]


def test_elsewhere_and_the_second_time_it_does_nothing(tmp_path):
    (tmp_path / "here").mkdir()
    assert run_cell(tmp_path / "here") == ["here"]
    (tmp_path / "two/checkout/cellkit").mkdir(parents=True)
    assert run_cell(tmp_path / "two/checkout", COLAB_RELEASE_TAG="x") == ["checkout"]


def test_hosted_a_kernel_that_is_started_again_goes_back_into_the_checkout(tmp_path):
    """As Colab asks for once numpy was replaced: it begins beside the checkout again."""
    (tmp_path / "content/cellkit/notebooks").mkdir(parents=True)
    assert run_cell(tmp_path / "content", COLAB_RELEASE_TAG="x") == ["cellkit"], "nothing is fetched anew"


@pytest.mark.parametrize(("torch", "stays"), [("2.12.0+cu130", True), ("2.9.1", False), (None, False)])
def test_the_torch_that_is_there_stays_where_it_is_new_enough(torch, stays, tmp_path):
    for name, version in (("torch", torch), ("torchvision", "0.27.0")):
        if version:
            about = tmp_path / f"site/{name}-{version}.dist-info/METADATA"
            about.parent.mkdir(parents=True)
            about.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    python = tmp_path / "python"  # pip is only noted, and of the packages it sees those above
    note = f'case "$*" in *"-m pip"*) echo "$@" >> {tmp_path}/pip.txt; cp hosted.txt {tmp_path}/ ;; '
    python.write_text(f'#!/bin/sh\n{note}*) PYTHONPATH={tmp_path}/site exec {sys._base_executable} -s "$@" ;; esac\n')
    python.chmod(0o755)
    checkout = tmp_path / "cellkit"
    for name in ("scripts/hosted.sh", "scripts/lock_for.py", "requirements/lock.txt"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text((ROOT / name).read_text())
    subprocess.run(["sh", checkout / "scripts/hosted.sh"], env={**os.environ, "PYTHON": str(python)}, check=True)
    names = {name for name, _ in blocks((tmp_path / "hosted.txt").read_text())}
    assert "cellpose" in names and ("torch" in names, "triton" in names, "nvidia-cublas" in names) == (not stays,) * 3
    asked = (tmp_path / "pip.txt").read_text().splitlines()
    assert "--require-hashes -r hosted.txt" in asked[0] and "--editable ." in asked[1] and len(asked) == 2
    assert not (checkout / "hosted.txt").exists()
