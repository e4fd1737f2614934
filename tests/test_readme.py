"""README and CONTRIBUTING say what is so."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from repo_cases import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(text: str, language: str) -> list[str]:
    """Return the code blocks of a Markdown text in one language; an indented one without its indentation."""
    blocks = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, found, block in blocks if found == language]


# ---- README --------------------------------------------------------------------------------------------------------


def test_readme_has_exactly_two_make_commands():
    blocks = [block.split("\n")[:-1] for block in fenced(README, "sh") if "make " in block]
    assert blocks == [["make demo", "make test"]]
    assert set(re.findall(r"`(?:\w+=\S+ )?make (\w+)`", README)) == {"demo", "test"}
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"setup", "demo", "test", "lint", "lab", "bench", "slides", "docs", "schema", "lock", "clean"} <= set(
        targets
    )


def test_ci_calls_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.findall(r"^(?:exec )?(make .*)$", script.read_text(), re.MULTILINE) == ["make test"]
    subprocess.run(["bash", "-n", script], check=True)


def rows_of(title: str, text: str = README) -> list[str]:
    """Return the paths in the table of one section."""
    return re.findall(r"^\| `([^`]+)` \|", text.split(f"## {title}\n")[1].split("\n## ")[0], re.MULTILINE)


def parts_of(package: Path) -> set[str]:
    """Return the folders of a package that hold modules, and the modules beside them."""
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    return folders | {path.name for path in package.glob("*.py") if not path.name.startswith("_")}


def test_readme_has_a_row_for_every_folder_of_the_package():
    named = {row.removeprefix("cellkit/") for row in rows_of("The folders")}
    assert parts_of(ROOT / "cellkit") == named, "one row for each folder and each file beside them"


def test_a_folder_without_a_row_would_be_found(tmp_path):
    for name in ("cells/__init__.py", "scores/__init__.py", "starter/card.json", "errors.py", "__main__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert parts_of(tmp_path) == {"cells/", "scores/", "errors.py"}


def test_file_map_of_the_manual_names_only_what_exists():
    named = rows_of("Where things are", (ROOT / "docs" / "set-up.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_readme_is_one_page():
    words = [word for word in re.sub("<!--.*?-->", "", README).split() if re.search(r"\w", word)]
    assert 800 < len(words) < 1000


def links(text: str) -> list[tuple[str, str]]:
    """Return path and anchor of the links and pictures of a page that lead to other pages."""
    prose = re.sub(r"^( *)```.*?^\1```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    return [(path, anchor) for path, anchor in re.findall(r"]\(([^)#\s]*)#?([^)\s]*)\)", prose) if "://" not in path]


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "data/README.md", "data/formats.md", "notebooks/README.md"]
)
def test_links_of_a_page_lead_somewhere(name):
    for path, anchor in links((ROOT / name).read_text(encoding="utf-8")):
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{path}#{anchor}"
    assert name != "README.md" or any(path.endswith(".png") for path, _ in links(README))


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_of_the_manual_lead_somewhere(page):
    """As the repository shows the page; `make docs` looks at the built one."""
    for path, anchor in links(page.read_text(encoding="utf-8")):
        target = page.parent / path if path else page
        assert target.is_file(), path
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


def manual():
    """Return docs/generate.py, which makes pages of the manual from the code; nothing of mkdocs is needed for that."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_generated_pages_name_every_setting_and_module():
    from cellkit.config.reading import known_keys

    settings = manual().settings()
    tables = {key for key, field in known_keys().items() if "properties" in field}
    assert all(f"| `{key}` |" in settings for key in known_keys().keys() - tables)
    assert all(f"## `{key}`" in settings for key in tables)
    assert len({line.count("|") - 2 * line.count("\\|") for line in settings.split("\n") if line.startswith("|")}) == 1
    pages = dict(manual().reference())
    assert {"api/index.md", "api/cellkit.md", "api/cellkit.errors.md"} <= pages.keys()
    assert not [name for name, about in manual().modules() if not about], "a module without a docstring"


def test_links_of_pages_outside_the_manual_are_turned_to_its_own():
    text = manual().turned(ROOT / "README.md")
    assert "](your-images.md)" in text and "](data-sets.md)" in text and "](files/demo.png)" in text
    assert "docs/" not in "".join(path for path, _ in links(text))


def test_commands_of_the_manual_exist():
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `cellkit ([a-z-]+)", page, re.MULTILINE))
    shown = subprocess.run([sys.executable, "-m", "cellkit", "--help"], capture_output=True, text=True, check=True)
    assert named == set(re.findall(r"^ {4}([a-z][a-z-]*)", shown.stdout, re.MULTILINE)) - {"COMMAND"}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_imports_shown_on_a_page_work(page):
    for module, names in re.findall(r"from (cellkit[.\w]*) import ([\w, ]+)", page.read_text(encoding="utf-8")):
        found = importlib.import_module(module)
        assert all(hasattr(found, name.strip()) for name in names.split(",")), (module, names)


def test_exit_codes_of_the_manual_are_those_of_the_command():
    from cellkit.commands.shared import DONE, FAILED, INTERRUPTED, REFUSED, SKIPPED

    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert list(map(int, re.findall(r"^\| (\d+) \|", page, re.MULTILINE))) == [
        DONE,
        FAILED,
        REFUSED,
        SKIPPED,
        INTERRUPTED,
    ]


@pytest.mark.parametrize("name", ["README.md", "docs/your-images.md"])
def test_example_config_is_accepted(name, tmp_path):
    from cellkit.config.reading import load_config

    (example,) = fenced((ROOT / name).read_text(encoding="utf-8"), "yaml")
    path = tmp_path / "my_cells.yaml"
    path.write_text(example)
    cfg = load_config(path)
    assert (cfg.name, cfg.classes, cfg.convert.channels.nuclei) == ("my_cells", ("HEK", "N2a"), "DAPI")


def test_example_layout_of_the_readme_is_read(tmp_path):
    from tifffile import imwrite

    from cellkit.config.reading import load_config
    from cellkit.sources.ingest import convert_images

    (example,) = fenced(README, "yaml")
    (tmp_path / "my_cells.yaml").write_text(example.replace("DAPI", "0").replace("GFP", "1"))
    labels = np.zeros((64, 64), np.uint8)
    labels[20:40, 20:40] = 1
    (layout,) = [block for block in fenced(README, "") if block.startswith("my_cells/")]
    for name in re.findall(r"\S+\.tif", layout):
        path = tmp_path / "my_cells" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        stack = np.stack([labels, labels]).astype(np.uint16) * 900 + np.arange(64, dtype=np.uint16)
        imwrite(path, labels if name.startswith("truth/") else stack, imagej=not name.startswith("truth/"))
    made = convert_images(load_config(tmp_path / "my_cells.yaml").convert, tmp_path / "my_cells", tmp_path / "run")
    assert made.quarantined == []
    assert {
        (r.cell_type, len(i), tuple(i.class_ids))
        for r, i in zip(made.images.records, made.images.instances, strict=True)
    } == {
        ("HEK", 1, (1,)),
        ("N2a", 1, (2,)),
        ("mixed", 1, (0,)),
    }
    assert [r.split for r in made.images.records if r.cell_type == "mixed"] == ["test"]


# ---- CONTRIBUTING --------------------------------------------------------------------------------------------------


def test_example_backend_of_contributing_works(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = [block for block in fenced(text, "python") if "def train(" in block]
    module: dict = {}
    exec(compile(example, "mine.py", "exec", dont_inherit=True), module)
    image = np.zeros((32, 40, 3), np.uint8)
    image[5:12, 5:12], image[20:30, 20:30] = 200, 220
    checkpoint = module["train"]([(image, None)], [], module["TrainSettings"](), tmp_path)
    found, nothing = module["load"](checkpoint)([image, np.zeros_like(image)])
    assert (found.shape, list(found.areas_px), len(nothing)) == ((32, 40), [49, 100], 0)


def test_paths_named_in_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:cellkit|tests|configs|notebooks|data|scripts)/[\w./-]*)`", text))
    assert len(named) > 5
    example = {f"cellkit/{name}/mine.py" for name in ("models", "sources", "formats", "formats/competitions")}
    assert sorted(path for path in named - example if not (ROOT / path).exists()) == []
    dotted = set(re.findall(r"`(cellkit(?:\.\w+)+)", text))
    assert "cellkit.models.training.fit" in dotted
    for name in dotted:
        pkgutil.resolve_name(name)  # raises where there is none


def test_the_library_logs_and_does_not_print():
    """All but the command line, and the console of a run, speak through the logger "cellkit"."""
    printing = set()
    for path in sorted((ROOT / "cellkit").rglob("*.py")):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(isinstance(called, ast.Name) and called.id == "print" for called in calls):
            printing.add(path.relative_to(ROOT / "cellkit").with_suffix("").as_posix())
    assert {name for name in printing if not name.startswith("commands/")} == {"log", "run/console"}


def test_nothing_is_said_to_who_does_not_listen():
    code = "from cellkit.log import LOG, show_log; LOG.warning('a'); LOG.info('b'); show_log(); show_log(); LOG.info('c %')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("c %\n", "")


def test_no_module_is_called_like_a_function_that_notebooks_import():
    """``from cellkit import show_counts`` would give the module."""
    import cellkit

    assert [name for name in cellkit.__all__ if (ROOT / "cellkit" / f"{name}.py").exists()] == []
