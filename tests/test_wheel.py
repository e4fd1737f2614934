"""A wheel is all that `pip install` needs: weights inside, a command, a version from the tag."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
import yaml
from repo_cases import ROOT

SOURCE = ("pyproject.toml", "README.md", "LICENSE", "cellkit")
PLAIN = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CELLKIT_MODULES")}


def run(*command, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=PLAIN, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """What an archive of the repository holds, without git."""
    folder = tmp_path_factory.mktemp("archive")
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory) -> Path:
    """The binaries of an environment with the wheel, and our packages as its dependencies."""
    folder = tmp_path_factory.mktemp("clean")
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q")
    run(sys.executable, "-m", "pip", "wheel", *offline, "-w", folder / "dist", ".", cwd=source)
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    place = next((folder / "env").glob("lib*/python*/site-packages"))
    (place / "dependencies.pth").write_text(
        sysconfig.get_path("purelib")
    )  # a bare folder: no editable install of it counts
    run(folder / "env/bin/python", "-m", "pip", "install", *offline[:2], "-q", wheel, cwd=folder)
    return folder / "env/bin"


@pytest.mark.slow
def test_a_wheel_finds_cells_away_from_the_checkout(installed, drawn, tmp_path):
    where = run(installed / "python", "-c", "import cellkit; print(cellkit.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert "export" in run(installed / "cellkit", "--help", cwd=tmp_path)
    shutil.copy(drawn.root / drawn.records[0].path, tmp_path / "a.png")
    said = run(installed / "cellkit", "predict", "starter_light", "a.png", "-o", "found.json", cwd=tmp_path)
    assert "1 image, " in said and " 0 cells" not in said
    code = "from cellkit.fetch.find import find_weights; print(find_weights('starter'))"
    assert Path(run(installed / "python", "-c", code, cwd=tmp_path).strip()).stat().st_size > 10**7


@pytest.mark.slow
def test_a_wheel_has_the_version_of_the_code_where_there_is_no_git(installed, tmp_path):
    from cellkit import __version__

    code = "from importlib.metadata import version; print(version('cellkit'))"
    assert run(installed / "python", "-c", code, cwd=tmp_path).strip() == __version__


def versions(folder: Path) -> str:
    return run(sys.executable, "-W", "ignore", "-m", "setuptools_scm", cwd=folder).split()[-1]


def test_the_version_is_that_of_the_tag(tmp_path):
    def git(*words):
        run("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *words, cwd=tmp_path)

    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    fallback = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools_scm"]["fallback_version"]
    assert versions(tmp_path).startswith(f"{fallback.rpartition('.')[0]}."), "a clone without tags"
    git("tag", "1f55fc0e")  # a name that is no version
    git("tag", "v7.8.9")
    assert versions(tmp_path) == "7.8.9"
    git("commit", "-q", "--allow-empty", "-m", "second")
    assert versions(tmp_path).startswith("7.8.10.dev1+g")


def test_a_release_is_built_from_a_tag_and_needs_no_secret():
    text = (ROOT / ".github/workflows/release.yml").read_text()
    flow = yaml.safe_load(text)
    assert flow[True]["push"]["tags"] == ["v[0-9]*"] and flow["permissions"] == {"contents": "write"}
    assert "secrets." not in text
    steps = " ".join(step.get("run", "") for step in flow["jobs"]["build"]["steps"])
    assert all(word in steps for word in ("python -m build", "cellkit predict", "gh release create"))
    assert flow["jobs"]["build"]["steps"][0]["with"] == {"fetch-depth": 0}, "tags are needed"
