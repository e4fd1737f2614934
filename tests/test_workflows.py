"""The workflows say what the commands take; what an engine would run is run, and the engine too where it is installed."""

from __future__ import annotations

import ast
import csv
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from repo_cases import ROOT

from cellkit.microscope.open import READ_SUFFIXES

FOLDER = ROOT / "workflows"
SNAKEFILE = FOLDER / "snakemake/Snakefile"
MODULES = FOLDER / "nextflow/modules/local/cellkit"
CHANNELS = "--nuclei DAPI --cytoplasm GFP"


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Two drawn microscope files."""
    from cellkit.sources.drawn.files import write_fields

    folder = tmp_path_factory.mktemp("raw")
    write_fields(folder, images_per_line=1, mixed_images=2, diameter_px=30, defect_images_per_line=0, seed=1)
    return folder / "mixed"


@pytest.fixture
def env(tmp_path) -> dict[str, str]:
    """An environment in which the command cellkit is this checkout's."""
    command = tmp_path / "bin/cellkit"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m cellkit "$@"\n')
    command.chmod(0o755)
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return plain | {"PATH": f"{command.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def script_of(process: str) -> str:
    """Return what a Nextflow process runs, as it stands there."""
    text = (MODULES / process / "main.nf").read_text(encoding="utf-8")
    return re.search(r'script:.*?"""\n(.*?)"""', text, re.DOTALL)[1]


def filled(script: str, **values: str) -> str:
    """Put values in as Nextflow does: ``${name}``, and a backslash before what is the shell's own."""
    for name, value in values.items():
        script = script.replace("${" + name.replace("__", ".") + "}", value)
    assert not re.search(r"(?<!\\)\$\{", script), "a value that the process does not declare"
    return "\n".join(
        line.removeprefix("    ") for line in script.replace("\\\\\n", "\\\n").replace("\\$", "$").splitlines()
    )


def own_script(process: str) -> str:
    """Return what a process runs that is a program of its own, without the indent that Nextflow takes off, too."""
    return textwrap.dedent(script_of(process)).replace("${task.process}", "P")


def joined_by_nextflow(folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", own_script("table")], cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def joined_by_snakemake(folder: Path) -> None:
    rule = SNAKEFILE.read_text(encoding="utf-8").split("    run:\n")[1]
    tables, skipped = ([str(path) for path in sorted((folder / name).glob("*"))] for name in ("tables", "skipped"))
    outputs = SimpleNamespace(cells=folder / "cells.csv", skipped=folder / "skipped.csv")
    exec(textwrap.dedent(rule), {"input": SimpleNamespace(tables=tables, skipped=skipped), "output": outputs})


class Quoting(string.Formatter):
    """Fills in a rule's shell lines as Snakemake does: ``{input:q}`` is quoted."""

    def format_field(self, value, spec):
        return shlex.quote(str(value)) if spec == "q" else str(value)


def ruled(rule: str, **values) -> str:
    """Return what a rule of the Snakefile has the shell do."""
    lines = SNAKEFILE.read_text(encoding="utf-8").split(f"rule {rule}:")[1].split("    shell:\n")[1].split("\n\n")[0]
    return Quoting().format(ast.literal_eval(f"({lines})"), **values)


def rows_of(table: Path) -> list[dict[str, str]]:
    with open(table, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def shell(script: str, folder: Path, env: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_what_nextflow_would_run_finds_and_measures_cells(raw, env, tmp_path):
    image = sorted(raw.iterdir())[0]
    (tmp_path / image.name).symlink_to(image)
    same = {"prefix": "cells of one", "image": image.name, "task__process": "P", "task__cpus": "1"}
    find = filled(script_of("predict"), **same, model="starter_light", args=CHANNELS)
    shell(find, tmp_path, env)
    measure = filled(script_of("measure"), **same, coco=r"cells\ of\ one.json", args="")
    shell(measure, tmp_path, env)
    rows = rows_of(tmp_path / "cells of one.csv")
    assert len(rows) > 10 and list((tmp_path / "cells of one_labels").glob("*.tif"))
    versions = yaml.safe_load((tmp_path / "versions.yml").read_text().replace("\t", " "))
    assert list(versions) == ["P"] and set(versions["P"]) == {"cellkit"}


@pytest.mark.parametrize("join", [joined_by_nextflow, joined_by_snakemake])
def test_tables_with_other_columns_are_joined_by_name(join, tmp_path):
    """The first image has no cell, and so no channels; the last has another channel than the second."""
    tables = {"a": "image,area\n", "b": "image,area,mean_DAPI\nb,5,7\n", "c": "\ufeffimage,mean_GFP,area\nc,9,4\n"}
    (tmp_path / "tables").mkdir()
    for name, text in tables.items():
        (tmp_path / f"tables/{name}.csv").write_text(text, encoding="utf-8")
    join(tmp_path)
    empty = {"mean_DAPI": "", "mean_GFP": ""}
    assert rows_of(tmp_path / "cells.csv") == [
        {**empty, "image": "b", "area": "5", "mean_DAPI": "7"},
        {**empty, "image": "c", "area": "4", "mean_GFP": "9"},
    ]
    (tmp_path / "tables/b.csv").unlink()
    (tmp_path / "tables/c.csv").unlink()
    join(tmp_path)
    assert (tmp_path / "cells.csv").read_text().strip() == "image,area"


def test_a_file_of_which_nothing_can_be_used_is_named_and_ends_no_run(env, tmp_path):
    """As Snakemake's rules do it; Nextflow ignores the exit code 65 and names the file."""
    for name in ("tables", "skipped"):
        (tmp_path / name).mkdir()
    (tmp_path / "a b.png").write_bytes(b"no picture")
    place = {"coco": "a.json", "labels": "labels", "skipped": "skipped/a b.png.predict.txt"}
    told = {"input": "a b.png", "output": SimpleNamespace(**place), "log": "log.txt", "threads": 1}
    shell(ruled("cellkit_predict", params=SimpleNamespace(model="threshold", channels=""), **told), tmp_path, env)
    where = {"cells": "tables/a b.png.csv", "skipped": "skipped/a b.png.measure.txt"}
    told |= {"input": SimpleNamespace(image="a b.png", coco="a.json"), "output": SimpleNamespace(**where)}
    shell(ruled("cellkit_measure", **told), tmp_path, env)
    with pytest.raises(ValueError, match="no file could be used; a b.png: of 1 image none could be used"):
        joined_by_snakemake(tmp_path)
    (tmp_path / "tables/b.csv").write_text("image,area\nb,5\n")
    joined_by_snakemake(tmp_path)
    assert rows_of(tmp_path / "cells.csv") == [{"image": "b", "area": "5"}]
    (skipped,) = rows_of(tmp_path / "skipped.csv")
    assert (skipped["file"], skipped["step"]) == ("a b.png", "predict") and "cannot be read as PNG" in skipped["reason"]

    same = {"prefix": "x", "image": r"a\ b.png", "task__process": "P", "task__cpus": "1", "args": ""}
    for model, code in (("threshold", 65), ("no_such_model", 2)):
        script = filled(script_of("predict"), **same, model=model)
        assert (
            subprocess.run(["bash", "-eu", "-c", script], cwd=tmp_path, env=env, capture_output=True).returncode == code
        )
    assert "task.exitStatus == 65 ? 'ignore' : 'finish'" in (FOLDER / "nextflow/nextflow.config").read_text()


def test_images_are_what_cellkit_reads_and_two_of_one_name_are_refused(tmp_path, capsys):
    head = SNAKEFILE.read_text(encoding="utf-8").split("IMAGES = ")[0]
    named: dict = {}
    exec(head, named)
    assert named["READ"] == READ_SUFFIXES
    assert all(f"'{end}'" in (FOLDER / "nextflow/main.nf").read_text() for end in READ_SUFFIXES)
    with pytest.raises(ValueError, match="no image in"):
        named["names_in"](tmp_path)
    for name in ("b.ome.zarr", "folder"):
        (tmp_path / name).mkdir()
    for name in ("a.ome.tif", "c.PNG", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    assert named["names_in"](tmp_path) == ["a.ome.tif", "b.ome.zarr", "c.PNG"]
    assert capsys.readouterr().err.rstrip().endswith(": folder, notes.txt")
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="a.ome.tif and a.png would be one image in cells.csv"):
        named["names_in"](tmp_path)


@pytest.mark.parametrize("process", ["predict", "measure", "table"])
def test_a_module_of_nextflow_has_the_parts_of_nf_core(process):
    text = (MODULES / process / "main.nf").read_text(encoding="utf-8")
    about = yaml.safe_load((MODULES / process / "meta.yml").read_text())
    assert f"process CELLKIT_{process.upper()} {{" in text and about["name"] == f"cellkit_{process}"
    for part in (
        "tag ",
        "label ",
        "conda ",
        "container ",
        "input:",
        "output:",
        "when:",
        "script:",
        "stub:",
        "versions.yml",
    ):
        assert part in text, part
    emitted = set(re.findall(r"emit: (\w+)", text))
    assert emitted == {name for entry in about["output"] for name in entry}
    taken = set(re.findall(r"\b(?:val|path)[ (]\s*(\w+)\)?", text.split("input:")[1].split("output:")[0]))
    assert taken == {name for group in about["input"] for entry in group for name in entry}
    assert yaml.safe_load((MODULES / process / "environment.yml").read_text())["dependencies"]


@pytest.mark.parametrize("command", ["predict", "measure"])
def test_the_workflows_use_options_that_there_are(said, command):
    options = set(re.findall(r"--?[a-z][\w-]*", said(command, "--help")[1]))
    rule = re.search(rf"cellkit {command} .*?(?:>|\"$)", SNAKEFILE.read_text(), re.DOTALL)[0]
    for text in (rule, re.split("cat <<|2> said", script_of(command))[0]):
        assert set(re.findall(r"(?<=\s)--?[a-z][\w-]*", text.split(f"cellkit {command}")[1])) <= options
    assert "--nuclei" in said("predict", "--help")[1] and "--cytoplasm" in said("predict", "--help")[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("snakemake") is None, reason="snakemake is not installed: pip install snakemake")
def test_snakemake_goes_on_after_a_file_that_could_not_be_read(raw, env, tmp_path):
    images = Path(shutil.copytree(raw, tmp_path / "images"))
    good = sorted(images.iterdir())
    (images / "zz.tif").write_bytes(good[0].read_bytes()[:200])
    options = ["--cores", "1", "--config", "images=images", "model=starter_light", f"channels={CHANNELS}"]
    command = ["snakemake", "--snakefile", str(SNAKEFILE), *options]
    assert subprocess.run(command, cwd=tmp_path, env=env, capture_output=True).returncode == 0
    assert [row["file"] for row in rows_of(tmp_path / "results/skipped.csv")] == ["zz.tif"]
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "results/coco").iterdir()}
    (images / "zz.tif").unlink()
    assert subprocess.run(command, cwd=tmp_path, env=env, capture_output=True).returncode == 0
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "results/coco").iterdir()}
    assert {name: first[name] for name in again if name != "zz.tif.json"}.items() <= again.items()
    rows = rows_of(tmp_path / "results/cells.csv")
    assert {row["image"] for row in rows} and len(rows) > 20
