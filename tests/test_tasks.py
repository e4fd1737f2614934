"""The ten tasks of docs/tasks.md, each done with the commands of the page, in its order."""

import re
import shlex
import zipfile
from pathlib import Path

import pytest
from repo_cases import ROOT
from test_readme import fenced

from cellkit.commands.main import main

PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
TASKS = re.split(r"^## ", PAGE, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Do all tasks in one folder; return it, and {number of the task: what was printed}."""
    import contextlib
    import io

    folder, told = tmp_path_factory.mktemp("tasks"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, task in enumerate(TASKS):
            out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
            with contextlib.redirect_stdout(out):
                for line in "".join(fenced(task, "sh")).splitlines():
                    run(line)
            out.seek(0)
            told[number] = out.read()
    return folder, told


def run(line):
    """Run one command of the page, in this process."""
    program, *words = shlex.split(line)
    if program == ".venv/bin/python":
        option, code = words
        assert option == "-c"
        exec(code, {})
    else:
        assert program == ".venv/bin/cellkit", line
        assert main(words) == 0, line
    if words[-2:] == ["--format", "roi"]:  # what the page tells to do in Fiji meanwhile: save over each zip
        for path in Path("fiji").glob("*.zip"):
            with zipfile.ZipFile(path) as file:
                members = {name: file.read(name) for name in file.namelist() if name.endswith(".roi")}
            with zipfile.ZipFile(path, "w") as file:
                for name, content in members.items():
                    file.writestr(name, content)


@pytest.mark.filterwarnings("ignore:.*:Warning:anndata", "ignore:.*chained_assignment")
@pytest.mark.slow
def test_ten_tasks_are_done_by_the_commands_of_the_page(done):
    import json

    folder, told = done
    assert len(TASKS) == 11
    assert [task.split(".")[0] for task in TASKS[1:]] == [str(number) for number in range(1, 11)]
    assert all(fenced(task, "sh") for task in TASKS)
    counts = dict(re.findall(r"^(\w+_\d\d)\s+(\d+)$", told[1], re.MULTILINE))
    assert sorted(counts) == ["HEK_01", "HEK_02", "N2a_01", "N2a_02"]
    assert all(5 < int(count) < 100 for count in counts.values()), "drawn fields have some tens of cells"
    assert float(re.search(r"^mean\s+([\d.]+)", told[2], re.MULTILINE)[1]) > 20, "um^2"
    assert "background_GFP" in told[3]
    assert told[4].count("N2a_0") == 2
    features = json.loads((folder / "qupath/HEK_01.geojson").read_text(encoding="utf-8"))["features"]
    assert len(features) == int(counts["HEK_01"])
    assert "cell" in {one["properties"]["objectType"] for one in features}
    assert features[0]["properties"]["measurements"]["area_um2"] > 0
    assert re.search(r"kaggle +1\.000", told[6]), "nothing was corrected yet"
    assert "HEK_02" in told[7]
    assert sorted(path.name for path in (folder / "zarr").iterdir())[0] == "HEK_01.ome.zarr"
    assert (folder / "cells.h5ad").stat().st_size > 1000
    assert (folder / "model.onnx").stat().st_size > 10**6
    assert "found.json" in told[10] and "other.json" in told[10]
