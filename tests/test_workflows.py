"""The workflows say what the commands take; what an engine would run is run, and the engine too where it is installed."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
import textwrap
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import yaml
from repo_cases import ROOT

from cellkit.cells.names import image_id_of
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
    (folder / "path").mkdir(exist_ok=True)
    (folder / "path/cellkit").write_text(
        "#!/bin/sh\necho cellkit 1.2.3\n"
    )  # its Python need not be the one of the script
    (folder / "path/cellkit").chmod(0o755)
    command, env = (
        [sys.executable, "-I", "-S", "-c", own_script("table")],
        {"PATH": f"{folder / 'path'}:{os.environ['PATH']}"},
    )
    subprocess.run(command, cwd=folder, check=True, env=env, capture_output=True, text=True)
    assert yaml.safe_load((folder / "versions.yml").read_text()) == {"P": {"cellkit": "1.2.3"}}


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
    same = {"quoted": "cells of one", "image": image.name, "task__process": "P", "task__cpus": "1"}
    find = filled(script_of("predict"), **same, model="starter_light", args=CHANNELS)
    shell(find, tmp_path, env)
    measure = filled(script_of("measure"), **same, coco=r"cells\ of\ one.json", args="")
    shell(measure, tmp_path, env)
    rows = rows_of(tmp_path / "cells of one.csv")
    assert len(rows) > 10 and list((tmp_path / "cells of one_labels").glob("*.tif"))
    assert not list(tmp_path.glob("*.predict.txt")) and not list(tmp_path.glob("*.measure.txt"))
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


def by_snakemake(rule: str, name: str, folder: Path, env: dict[str, str], model: str = "threshold") -> None:
    """Do what a rule of the Snakefile does to a file."""
    place = {
        "coco": f"coco/{name}.json",
        "labels": f"labels/{name}",
        "cells": f"tables/{name}.csv",
        "skipped": f"skipped/{name}.{rule}.txt",
    }
    given = name if rule == "predict" else SimpleNamespace(image=name, coco=place["coco"])
    told = {"input": given, "output": SimpleNamespace(**place), "log": "log.txt", "threads": 1}
    shell(ruled(f"cellkit_{rule}", params=SimpleNamespace(model=model, channels="--nuclei 0"), **told), folder, env)


def by_nextflow(process: str, name: str, folder: Path, env: dict[str, str], model: str = "threshold") -> None:
    """Do what a process does to a file, and put its results where the next one has them."""
    image, quoted = shlex.quote(name), name.replace("'", "'\\''")
    same = {"quoted": quoted, "image": image, "task__process": "P", "task__cpus": "1"}
    coco = shlex.quote(f"coco/{name}.json")
    more = {"model": model, "args": "--nuclei 0"} if process == "predict" else {"coco": coco, "args": ""}
    shell(filled(script_of(process), **same, **more), folder, env)
    for ending, place in ((".json", "coco"), (".csv", "tables"), (f".{process}.txt", "skipped")):
        if (folder / (name + ending)).exists():
            (folder / (name + ending)).rename(folder / place / (name + ending))


@pytest.fixture(params=["snakemake", "nextflow"])
def engine(request, tmp_path) -> SimpleNamespace:
    """What a workflow does to one file, and how it joins what it has."""
    for name in ("coco", "tables", "skipped", "labels"):
        (tmp_path / name).mkdir()
    if request.param == "snakemake":
        return SimpleNamespace(do=by_snakemake, join=joined_by_snakemake, error=ValueError, name="snakemake")
    return SimpleNamespace(
        do=by_nextflow, join=joined_by_nextflow, error=subprocess.CalledProcessError, name="nextflow"
    )


def test_a_file_of_which_nothing_can_be_used_is_named_and_ends_no_run(engine, env, tmp_path):
    (tmp_path / "a b.png").write_bytes(b"no picture")
    engine.do("predict", "a b.png", tmp_path, env)
    if engine.name == "snakemake":  # whose rules have a result of every file
        engine.do("measure", "a b.png", tmp_path, env)
    with pytest.raises(engine.error) as failed:
        engine.join(tmp_path)
    told = getattr(failed.value, "stderr", None) or str(failed.value)
    assert "no file could be used; a b.png: of 1 image none could be used" in told
    (tmp_path / "tables/b.csv").write_text("image,area\nb,5\n")
    engine.join(tmp_path)
    assert rows_of(tmp_path / "cells.csv") == [{"image": "b", "area": "5"}]
    (skipped,) = rows_of(tmp_path / "skipped.csv")
    assert (skipped["file"], skipped["step"]) == ("a b.png", "predict") and "cannot be read as PNG" in skipped["reason"]
    with pytest.raises(AssertionError, match="assert 2 == 0"):
        engine.do("predict", "a b.png", tmp_path, env, model="no_such_model")


def test_a_file_whose_measurement_fails_is_left_out_and_named(engine, env, tmp_path):
    cell = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 4, 4], "area": 16, "iscrowd": 0}
    cell["segmentation"] = [[2, 2, 6, 2, 6, 6, 2, 6]]
    image = {"id": 1, "file_name": "it's.png", "width": 20, "height": 20}
    found = {"images": [image], "annotations": [cell], "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "coco/it's.png.json").write_text(json.dumps(found))
    (tmp_path / "it's.png").write_bytes(b"cut while it was copied")
    engine.do("measure", "it's.png", tmp_path, env)
    (tmp_path / "tables/b.csv").write_text("image,area\nb,5\n")
    engine.join(tmp_path)
    assert rows_of(tmp_path / "cells.csv") == [{"image": "b", "area": "5"}]
    (skipped,) = rows_of(tmp_path / "skipped.csv")
    assert (skipped["file"], skipped["step"]) == ("it's.png", "measure") and "none could be" in skipped["reason"]
    (tmp_path / "coco/it's.png.json").write_text("{")
    with pytest.raises(AssertionError, match="assert 2 == 0"):
        engine.do("measure", "it's.png", tmp_path, env)


def test_a_picture_of_a_file_that_is_left_out_is_named(engine, env, tmp_path):
    planes = np.full((2, 64, 64), 100, np.float32)
    planes[:, 20:40, 20:40] = 4000
    planes[1, 0, 0] = np.nan
    tifffile.imwrite(tmp_path / "t.ome.tif", planes, metadata={"axes": "TYX"})
    engine.do("predict", "t.ome.tif", tmp_path, env)
    engine.do("measure", "t.ome.tif", tmp_path, env)
    engine.join(tmp_path)
    assert {row["image"] for row in rows_of(tmp_path / "cells.csv")} == {"t_t0"}
    skipped = rows_of(tmp_path / "skipped.csv")[0]
    assert (skipped["file"], skipped["step"]) == ("t.ome.tif", "predict") and "t.ome.tif_t1" in skipped["reason"]


def test_two_files_of_one_image_are_not_joined(engine, tmp_path):
    (tmp_path / "tables/s.ome.tif.csv").write_text("image,area\ns_t0,5\ns_t1,5\n")
    (tmp_path / "tables/s_t0.tif.csv").write_text("image,area\nS_t0,7\n")
    with pytest.raises(engine.error) as failed:
        engine.join(tmp_path)
    told = getattr(failed.value, "stderr", None) or str(failed.value)
    assert "s.ome.tif and s_t0.tif would both be image 'S_t0': rename one of them" in told
    assert not (tmp_path / "cells.csv").exists()


def head_of_snakefile(**config: object) -> dict:
    """Return what the Snakefile defines before its rules."""
    named: dict = {"config": config}
    exec(SNAKEFILE.read_text(encoding="utf-8").split("wildcard_constraints:")[0], named)
    return named


def test_what_a_workflow_is_given_is_checked(tmp_path, capsys):
    for given in ({}, {"images": ""}):
        with pytest.raises(ValueError, match="no images are named: --config images=FOLDER"):
            head_of_snakefile(**given)
    with pytest.raises(ValueError, match="is no folder"):
        head_of_snakefile(images=str(tmp_path / "nowhere"))
    (tmp_path / "a.png").touch()
    found = head_of_snakefile(images=str(tmp_path), chanels="x", out=None)
    assert (found["NAMES"], found["OUT"]) == (["a.png"], "results")
    assert "not read in --config: chanels; there are images, model" in capsys.readouterr().err
    (tmp_path / "a{1}.png").touch()
    with pytest.raises(ValueError, match=r"a\{1\}.png': no name may hold braces"):
        head_of_snakefile(images=str(tmp_path))
    text = (FOLDER / "nextflow/main.nf").read_text(encoding="utf-8")
    config = (FOLDER / "nextflow/nextflow.config").read_text(encoding="utf-8")
    known = ast.literal_eval(re.search(r"def known = (\[.*\])", text)[1])
    assert known == re.findall(r"(?m)^    (\w+) +=", config.split("}")[0])
    assert all(part in text for part in ("no images are named", "--model has no value", "--channels has no value"))


def test_images_are_what_cellkit_reads_and_two_of_one_name_are_refused(tmp_path, capsys):
    named: dict = {}
    exec(SNAKEFILE.read_text(encoding="utf-8").split("if not config")[0], named)
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
    with pytest.raises(ValueError, match="a.ome.tif and a.png would both be image 'a': rename one of them"):
        named["names_in"](tmp_path)
    (tmp_path / "a.png").rename(tmp_path / "A.png")
    with pytest.raises(ValueError, match="A.png and a.ome.tif differ in upper and lower case only: image 'a'"):
        named["names_in"](tmp_path)


def test_two_names_are_one_image_where_cellkit_says_so():
    named: dict = {}
    exec(SNAKEFILE.read_text(encoding="utf-8").split("if not config")[0], named)
    names = ["well 1.tif", "well_1.tif", "well+1.tif", "well-1.tif", "e\u0301.tif", "\xe9.png", "a.ome.tif", "a.tif"]
    names += [
        "a.ome.zarr",
        "a.b.tif",
        "-a.tif",
        "a-.tif",
        "a+b.tif",
        "a+b.png",
        "\u65e5.tif",
        "(1) a.tif",
        "a.ome.ome.tif",
    ]
    for one, other in combinations(names, 2):
        same = image_id_of(one) == image_id_of(other)
        assert (named["id_of"](one) == named["id_of"](other)) is same, (one, other)
        assert not same or named["id_of"](one) == image_id_of(one)
    rule = re.search(r"fullmatch\(r\"(.*?)\", plain\)", SNAKEFILE.read_text(encoding="utf-8"))[1]
    assert f"/(?U){rule}/ ? plain : text" in (FOLDER / "nextflow/main.nf").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((FOLDER / "nextflow").rglob("*.nf")), ids=lambda path: path.parent.name)
def test_nextflow_is_written_for_its_strict_parser(path):
    """Declarations alone stand at the top, and nothing is used that it warns of; names of files are no patterns."""
    text = path.read_text(encoding="utf-8")
    top = [line for line in text.splitlines() if line and line[0] not in " }/#"]
    assert all(
        re.match(r"include \{ \w+ \} from '|def \w+\(.*\) \{$|workflow \{$|process \w+ \{$", line) for line in top
    ), top
    for out in (r"\bChannel\.", r"\bit\b[.\[]", r"(?m)^import ", r"\b(for|while|switch) *\(", r"nextflow\.enable\.dsl"):
        assert not re.search(out, text), out
    assert all("glob: false" in line for line in text.splitlines() if 'path("${prefix}' in line)
    assert "params." not in text or path.name == "main.nf" and path.parent == FOLDER / "nextflow"


@pytest.mark.parametrize("process", ["predict", "measure", "table"])
def test_a_module_of_nextflow_has_the_parts_of_nf_core(process):
    text = (MODULES / process / "main.nf").read_text(encoding="utf-8")
    about = yaml.safe_load((MODULES / process / "meta.yml").read_text())
    assert f"process CELLKIT_{process.upper()} {{" in text and about["name"] == f"cellkit_{process}"
    for part in (
        "tag ",
        "label ",
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
    assert not list(FOLDER.rglob("environment.yml"))  # the repository's is the one, which takes cellkit from there
    config = (FOLDER / "nextflow/nextflow.config").read_text(encoding="utf-8")
    path = re.search(r'cellkit_conda += "\${projectDir}/(.*?)"', config)[1]
    assert (
        FOLDER / "nextflow" / path
    ).resolve() == ROOT / "environment.yml" and "conda      = params.cellkit_conda" in config


@pytest.mark.parametrize("command", ["predict", "measure"])
def test_the_workflows_use_options_that_there_are(said, command):
    options = set(re.findall(r"--?[a-z][\w-]*", said(command, "--help")[1]))
    rule = re.search(rf"cellkit {command} .*?(?:>|\"$)", SNAKEFILE.read_text(), re.DOTALL)[0]
    for text in (rule, re.split("2> said", script_of(command))[0]):
        assert set(re.findall(r"(?<=\s)--?[a-z][\w-]*", text.split(f"cellkit {command}")[1])) <= options
    assert "--nuclei" in said("predict", "--help")[1] and "--cytoplasm" in said("predict", "--help")[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("snakemake") is None, reason="snakemake is not installed: pip install snakemake")
def test_snakemake_goes_on_after_a_file_that_could_not_be_read(raw, env, tmp_path):
    images = Path(shutil.copytree(raw, tmp_path / "images"))
    good = sorted(images.iterdir())
    (images / "zz.tif").write_bytes(good[0].read_bytes()[:200])
    planes = np.full((3, 96, 96), 100, np.float32)
    planes[:2, 30:60, 30:60] = 4000
    planes[2, 0, 0] = np.nan  # in a channel that no model looks at, and that is measured
    channels = {"Channel": {"Name": ["DAPI", "GFP", "RED"]}, "axes": "CYX"}
    tifffile.imwrite(images / "nan.ome.tif", planes, metadata=channels)
    options = ["--cores", "1", "--config", "images=images", "model=starter_light", f"channels={CHANNELS}"]
    command = ["snakemake", "--snakefile", str(SNAKEFILE), *options]
    assert subprocess.run(command, cwd=tmp_path, env=env, capture_output=True).returncode == 0
    skipped = [(row["file"], row["step"]) for row in rows_of(tmp_path / "results/skipped.csv")]
    assert skipped == [("nan.ome.tif", "measure"), ("zz.tif", "predict")]
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "results/coco").iterdir()}
    (images / "zz.tif").unlink()
    assert subprocess.run(command, cwd=tmp_path, env=env, capture_output=True).returncode == 0
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "results/coco").iterdir()}
    assert {name: first[name] for name in again if name != "zz.tif.json"}.items() <= again.items()
    rows = rows_of(tmp_path / "results/cells.csv")
    assert {row["image"] for row in rows} and len(rows) > 20
