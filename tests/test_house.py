"""The house: no import leads back up, none in a circle, and every file is short enough to be read in one go."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cellkit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cellkit"
MOST_LINES = 450

# The folders from the ground up, each with those it may import; everyone may import the ground and itself.
GROUND = (
    "cluster",
    "errors",
    "files",
    "finding",
    "log",
    "machine",
    "manifest",
    "modules",
    "outdated",
    "parallel",
    "room",
    "settings",
    "under_way",
)
MAY_IMPORT = {
    "cells": (),
    "scores": ("cells",),
    "microscope": ("cells",),
    "formats": ("cells", "microscope"),
    "models": ("cells", "formats", "scores"),
    "fetch": ("models",),
    "config": ("cells", "microscope", "models"),
    "sources": ("cells", "config", "formats", "microscope", "scores"),
    "measure": ("cells", "config", "formats", "microscope", "sources"),
    "labelling": ("cells", "formats", "microscope", "models", "scores", "sources"),
    "evaluate": ("cells", "formats", "models", "scores"),
    "show": ("cells", "microscope", "models", "scores", "sources"),
    "predict": ("cells", "config", "fetch", "formats", "measure", "microscope", "models", "scores", "show", "sources"),
    "export": ("cells", "fetch", "models", "predict"),
    "forecast": ("cells", "config", "evaluate", "fetch", "microscope", "models", "sources"),
    "run": (
        "cells",
        "config",
        "evaluate",
        "fetch",
        "forecast",
        "formats",
        "labelling",
        "microscope",
        "models",
        "scores",
        "sources",
    ),
    "pages": (
        "cells",
        "config",
        "evaluate",
        "fetch",
        "forecast",
        "formats",
        "labelling",
        "measure",
        "microscope",
        "models",
        "predict",
        "run",
        "scores",
        "show",
        "sources",
    ),
}
MAY_IMPORT["commands"] = tuple(MAY_IMPORT)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.AST, modules) -> set[str]:
    """Return the modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(modules)


@cache
def all_imports() -> dict[str, set[str]]:
    """Return what each file imports; not looked for where the tests are only collected, as every process does."""
    return {name: imports(ast.parse(path.read_text(encoding="utf-8")), FILES) for name, path in FILES.items()}


def circle_of(arrows: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter({name: others - {name} for name, others in arrows.items()}).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def folder_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def arrows_up(arrows: dict[str, set[str]]) -> list[str]:
    """Return the imports that the list above does not allow, as "from -> to"."""
    wrong = []
    for name, others in arrows.items():
        here = folder_of(name)
        for other in sorted(others):
            there = folder_of(other)
            fine = here in ("", "__main__") or there in ("", here, *GROUND, *MAY_IMPORT.get(here, ()))
            wrong += [] if fine else [f"{name} -> {other}"]
    return wrong


def test_no_file_imports_in_a_circle():
    assert circle_of(all_imports()) == []


def test_no_import_leads_up():
    assert arrows_up(all_imports()) == []


def test_no_folder_is_in_a_circle_with_another():
    folders = {name: {f for f in may if f != name} for name, may in MAY_IMPORT.items()}
    assert circle_of(folders) == []


def test_a_circle_and_an_import_up_would_be_found():
    tree = ast.parse("def f():\n    from cellkit.b import x\n")
    assert imports(tree, {"cellkit.a", "cellkit.b"}) == {"cellkit.b"}
    assert circle_of({"cellkit.a": {"cellkit.b"}, "cellkit.b": {"cellkit.a"}})
    assert arrows_up({"cellkit.cells.records": {"cellkit.scores.iou"}}) == [
        "cellkit.cells.records -> cellkit.scores.iou"
    ]
    assert arrows_up({"cellkit.errors": {"cellkit.cells.records"}})


def test_every_file_of_the_package_has_its_place():
    places = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES.values()}
    assert places == {"__init__", "__main__", *GROUND, *MAY_IMPORT}


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_a_folder_opens_with_what_lives_here_and_what_it_may_import(folder):
    text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert text.count(". ") + text.count(".\n") + text.endswith(".") >= 2, "two sentences"
    if folder != "commands":
        assert [name for name in MAY_IMPORT[folder] if f"`{name}`" not in text] == []


def test_no_two_files_of_tests_have_one_name():
    """By which pytest imports them: the second would be refused, and with it the whole run."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_is_longer_than_two_pages():
    long = {name: lines for name, path in FILES.items() if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert long == {}


def test_cellkit_offers_exactly_what_the_notebooks_use():
    used = set()
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in (cell for cell in cells if cell["cell_type"] == "code"):
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "cellkit":
                    assert node.module == "cellkit", f"{path.stem}: {node.module}; everything comes from cellkit itself"
                    used |= {alias.name for alias in node.names}
    assert set(cellkit.__all__) == used
    assert [name for name in cellkit.__all__ if not getattr(cellkit, name).__doc__] == []


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Yield the public functions of a module and the public methods of its public classes."""
    for node in tree.body:
        inside = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        yield from (one for one in inside if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"))


def raises_unsaid(tree: ast.Module) -> list[str]:
    """Return the public functions that raise an error of their own and have no section Raises."""
    found = []
    for function in public_functions(tree):
        nested = {id(inner) for node in ast.walk(function) if isinstance(node, ast.FunctionDef) and node is not function
                  for inner in ast.walk(node)}  # fmt: skip
        own = [
            node for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc and id(node) not in nested
        ]
        if own and "\nRaises\n------\n" not in (ast.get_docstring(function) or ""):
            found.append(function.name)
    return found


def test_what_a_public_function_raises_is_in_its_docstring():
    assert {name: found for name, path in FILES.items() if (found := raises_unsaid(ast.parse(path.read_text())))} == {}
    assert raises_unsaid(ast.parse('def f():\n    "No word of it."\n    raise ValueError')) == ["f"]
    assert raises_unsaid(ast.parse("def f():\n    def g():\n        raise ValueError\n    return g")) == []
