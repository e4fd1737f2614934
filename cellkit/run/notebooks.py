"""The packaged notebooks and recipes: found, read, ordered by what they read and write, known by the hash of their code."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from cellkit.config.recipes import NUMBERED, RECIPES, notebook_folders, recipe_name, recipe_paths
from cellkit.config.sections import STAGES, Config
from cellkit.errors import UserError
from cellkit.files import read_json
from cellkit.manifest import package_sha256, sha256_json


@dataclass(frozen=True)
class Notebook:
    """A packaged notebook, read and found fit to run.

    Attributes
    ----------
    name : str
        File name without suffix, which is the stage's name.
    section : str
        Section of the configuration: by the stage's name, or metadata ``cellkit.section``.
    minutes : float or None
        About how long it takes on two cores: metadata ``cellkit.minutes``; said of a recipe that no forecast counts.
    sha256 : str
        Hash of its code cells, the parameters left out.
    keys : tuple of str
        What its ``stage.done`` lists; patterns where a key is computed.
    reads : tuple of str
        What it reads of its run, likewise; metadata ``cellkit.reads`` adds to it what the code does not tell.
    before : tuple of str
        The notebooks that come before it in the order of a run: whose outputs it may read.
    """

    name: str
    path: Path
    section: str
    minutes: float | None
    sha256: str
    keys: tuple[str, ...]
    reads: tuple[str, ...]
    content: dict[str, Any] = field(repr=False)
    before: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of all notebooks: of a recipe the one above its own."""
        return self.path.parents[1] if self.section.startswith(f"{RECIPES}.") else self.path.parent


def read_notebooks(folder: str | Path | None = None) -> list[Notebook]:
    """Read the numbered notebooks of a folder and its recipes, in the order of a run: see `ordered`.

    Parameters
    ----------
    folder : str or Path, optional
        By default ``notebooks`` beside the package, as in a checkout; else in the current folder.

    Raises
    ------
    UserError
        No such folder, no notebook, one without exactly the three parameters, or a circle of notebooks.
    """
    if folder is not None and "://" in str(folder):
        raise UserError(f"notebooks are not fetched from '{folder}'", "name a folder on this machine")
    places = notebook_folders(folder)
    for place in places:
        paths = sorted(place.glob(NUMBERED))
        if paths:
            recipes = recipe_paths(folder)
            return ordered([_read_notebook(path, path in recipes) for path in [*paths, *recipes]])
    tried = " or ".join(f"'{place}'" for place in places)
    raise UserError(f"no notebook 01_*.ipynb in {tried}", "run from the checkout of cellkit")


def notebooks_of(cfg: Config, folder: str | Path | None = None) -> list[Notebook]:
    """Return the notebooks that a configuration runs, in order, see `taking_part`; `folder` and errors as `read_notebooks`."""
    return taking_part(read_notebooks(folder), cfg)


def taking_part(books: Sequence[Notebook], cfg: Config) -> list[Notebook]:
    """Return those of the notebooks that a configuration runs: not what it leaves out, and the recipes that it names."""
    named = {f"{RECIPES}.{name}" for name, section in cfg.recipes if section is not None}
    return ordered(
        [
            book
            for book in books
            if (book.section in named if book.section.startswith(f"{RECIPES}.") else book.section not in cfg.leave_out)
        ]
    )


def matches(key: str, read: str) -> bool:
    """Tell whether a key that is listed and one that is read may be the same; both may be patterns.

    Examples
    --------
    >>> matches("predictions_unet", "predictions_*"), matches("coco_*", "coco_val"), matches("labels", "records")
    (True, True, False)
    """
    return fnmatchcase(key, read) or fnmatchcase(read, key)


def ordered(books: Sequence[Notebook]) -> list[Notebook]:
    """Return notebooks in the order of a run: what makes an output comes before what reads it, else as given.

    Raises
    ------
    UserError
        Notebooks that read from one another.
    """
    makers = {
        book.name: {
            other.name
            for other in books
            if other is not book and any(matches(key, read) for key in other.keys for read in book.reads)
        }
        for book in books
    }
    found: list[Notebook] = []
    while len(found) < len(books):
        names = tuple(book.name for book in found)
        left = [book for book in books if book.name not in names]
        ready = next((book for book in left if makers[book.name] <= set(names)), None)
        if ready is None:
            circle = ", ".join(book.name for book in left)
            raise UserError(
                f"notebooks that read from one another: {circle}",
                "let a recipe read what it needs by name, not all of a kind that it adds to",
            )
        found.append(replace(ready, before=names))
    return found


def _read_notebook(path: Path, is_recipe: bool = False) -> Notebook:
    copied = next((name for name in STAGES if path.stem.startswith(name) and path.stem != name), None)
    problem = f"'{path}' seems to be a copy of {copied}.ipynb, and of each stage one notebook is run"
    copy = UserError(problem, "remove it, or rename it so that it does not begin with two digits and _")
    try:
        content = read_json(path)
        json.dumps(content, ensure_ascii=False).encode()  # half a character cannot be written
        cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
        sources = [_source_of(cell) for cell in cells]
        metadata = _metadata_of(content, cells)
    except (ValueError, KeyError, TypeError):
        if copied:
            raise copy from None
        raise UserError(f"'{path}' is not a notebook (JSON of nbformat 4)", "restore it: git checkout") from None
    if copied and "section" not in metadata:
        raise copy
    _check_parameters(path, cells, sources)
    plain = [s for cell, s in zip(cells, sources, strict=True) if s and "parameters" not in _tags(cell)]
    section = f"{RECIPES}.{recipe_name(path.stem)}" if is_recipe else metadata.get("section") or STAGES.get(path.stem)
    if not is_recipe and section not in STAGES.values():
        known = ", ".join(STAGES.values())
        raise UserError(
            f"'{path}': no section of the configuration belongs to it", f"metadata cellkit.section: {known}"
        )
    reads = tuple(dict.fromkeys([*_reads_of(plain), *metadata.get("reads", ())]))
    return Notebook(
        path.stem, path, section, metadata.get("minutes"), sha256_json(plain), _keys_of(plain), reads, content
    )


def _metadata_of(content: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a notebook says of itself under ``cellkit``; of another kind than expected it is no notebook."""
    about = content.get("metadata", {})
    own = about.get("cellkit", {}) if isinstance(about, dict) else None
    if not isinstance(own, dict) or not isinstance(own.get("section", ""), str | None):
        raise TypeError("metadata")
    if not isinstance(own.get("minutes", 0), int | float | None) or not _are_texts(own.get("reads", [])):
        raise TypeError("metadata cellkit")
    if not all(isinstance(cell.get("metadata", {}), dict) and _are_texts(_tags(cell)) for cell in cells):
        raise TypeError("metadata of a cell")
    return own


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _source_of(cell: dict[str, Any]) -> str:
    return (cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])).strip()


def _tags(cell: dict[str, Any]) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def _check_parameters(path: Path, cells: list[dict[str, Any]], sources: list[str]) -> None:
    """Refuse a notebook unless one cell is tagged parameters and sets exactly config, run_dir and overrides."""
    wanted = "wanted one cell tagged parameters: config = '...', run_dir = '...', overrides = {}"
    if any("injected-parameters" in _tags(cell) for cell in cells):
        raise UserError(f"'{path}' is an executed copy (it has a cell tagged injected-parameters)", wanted)
    tagged = [source for cell, source in zip(cells, sources, strict=True) if "parameters" in _tags(cell)]
    if len(tagged) != 1:
        raise UserError(f"'{path}' has {len(tagged)} cells tagged parameters", wanted)
    try:
        pairs = [(line.targets[0].id, ast.literal_eval(line.value)) for line in ast.parse(tagged[0]).body]
    except (SyntaxError, ValueError, AttributeError, IndexError):
        raise UserError(f"'{path}': its parameters cell holds more than literals", wanted) from None
    if sorted(name for name, _ in pairs) != ["config", "overrides", "run_dir"]:
        raise UserError(f"'{path}' has the parameters {', '.join(name for name, _ in pairs) or 'none'}", wanted)


def _keys_of(sources: list[str]) -> tuple[str, ...]:
    """Return the keys that ``.done(...)`` lists, as far as the code tells; ``*`` stands for what it computes.

    Where outputs are passed as ``**outputs``, these are the keys of every dict in the notebook.
    """
    keys: list[str] = []
    is_spread = False
    nodes = [node for tree in map(_parse, sources) if tree for node in ast.walk(tree)]
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "done":
            keys += [keyword.arg for keyword in node.keywords if keyword.arg]
            is_spread |= any(keyword.arg is None for keyword in node.keywords)
    for node in nodes if is_spread else ():
        if isinstance(node, ast.Dict):
            keys += [_pattern(key) for key in node.keys]
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            keys.append(_pattern(node.slice))
    return tuple(dict.fromkeys(key for key in keys if key and key.strip("*")))


def _reads_of(sources: list[str]) -> tuple[str, ...]:
    """Return what ``find(...)``, ``find_all(...)`` and ``of_run(...)`` ask a run for, as far as the code tells."""
    nodes = [node for tree in map(_parse, sources) if tree for node in ast.walk(tree)]
    runs = {
        target.id
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _name_of(node.value.func) == "Run"
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    keys = []
    for node in nodes:
        called = node.func if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
        if called is not None and called.attr in ("find", "find_all") and _name_of(called.value) in runs:
            keys.append(_pattern(node.args[0]) if node.args else "*")
        elif called is not None and called.attr == "of_run":  # see `CellDataset.of_run`
            keys += ["records", "images"]
    return tuple(dict.fromkeys(key for key in keys if key))


def _name_of(node) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _parse(source: str):
    """Return the syntax tree of a cell, None when it holds more than Python."""
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
        return ast.parse(source)
    return None


def _pattern(node) -> str:
    """Return a string constant, or an f-string with ``*`` for its values; empty for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_pattern(part) or "*" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def maker_of(key: str) -> str | None:
    """Return the stage whose packaged notebook lists an output under `key`, None if none is known to."""
    with contextlib.suppress(UserError):
        for book in read_notebooks():
            if any(fnmatchcase(key, pattern) for pattern in book.keys):
                return book.name
    return None


# ---- code


@lru_cache(maxsize=1)
def code_hashes(notebook_sha256: str) -> dict[str, str]:
    """Return the hashes of a stage's code: of its notebook, of this package, of both."""
    package = package_sha256()
    both = hashlib.sha256(f"{notebook_sha256}\n{package}".encode()).hexdigest()
    return {"code_sha256": both, "notebook_sha256": notebook_sha256, "package_sha256": package}


def context_of(stage: str) -> dict[str, Any]:
    """Return what is known of a stage whose notebook is open in Jupyter: the code hashes of the file as saved, and which
    stages come before it (None = it is no packaged notebook)."""
    with contextlib.suppress(UserError):
        for book in read_notebooks():
            if book.name == stage:
                return {**code_hashes(book.sha256), "before": list(book.before)}
    return {**code_hashes(""), "before": None}
