"""Reading a configuration: YAML, overrides, and a JSON schema that says what every key accepts.

The schema is pydantic's. Messages, the table of keys in the manual and editors read the same one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cellkit.config.overrides import note_loaded, said_twice, table_of
from cellkit.config.parts import refuse_drawn_data, with_unlabelled
from cellkit.config.recipes import recipe_sections, with_recipes
from cellkit.config.sections import BACKEND_SECTIONS, SHARED, SOME_SHARE, STAGES, Config, config_class, section_class
from cellkit.errors import UserError, nearest, raise_or_collect
from cellkit.machine import here
from cellkit.models import backend_names, is_backend
from cellkit.settings import accepted, as_yaml, schema_of, weights_fields

MAX_CONFIG_BYTES = 200_000
PATHS = ("data", "convert.data", "convert.pseudo", "label.use", "label.model")  # and the weights trainings begin from
QUOTES = "\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\u00ab\u00bb\u2039\u203a\u00b4\uff02\uff07"  # that word processors set


class _Table(dict):
    """A table of YAML that knows how each of its values was written, for messages: NO, not false; 1.10, not 1.1."""

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, str] = {}


class _Loader(yaml.SafeLoader):
    """Safe YAML, of which nothing is dropped or becomes another value than is written.

    No aliases (they multiply), no keys given twice (the last would win silently), no numbers but in plain digits (010
    is 8 in YAML, 1:30 is 90), no typographic quotes (to YAML they are letters).
    """

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.events.AliasEvent) or getattr(event, "anchor", None):
            problem = "&anchors and *aliases are not read (put a text that begins so in quotes)"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def compose_scalar_node(self, anchor):
        node = super().compose_scalar_node(anchor)
        if node.style is None and node.value and (node.value[0] in QUOTES or node.value[-1] in QUOTES[:4]):
            problem = f"{node.value} is in typographic quotes, which would be part of the text: write ' or \""
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node

    def construct_number(self, node):
        """Read a number in plain digits; refuse octal, sexagesimal and the other ways YAML 1.1 has of writing one."""
        whole = node.tag.endswith(":int")
        value = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
        if re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", node.value) if whole else not re.search("[:_]", node.value):
            return value
        problem = f"{node.value} would be read as {value:.10g}: write a number in plain digits, a name in quotes"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    def construct_table(self, node):
        table = _Table()
        yield table
        table.update(self.construct_mapping(node))
        table.written = {key.value: _written(value) for key, value in node.value}

    def construct_mapping(self, node, deep=False):
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(
                    problem=f"key {getattr(key, 'value', '[...]')} is not text (quote it)", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _construct in {
    "int": _Loader.construct_number,
    "float": _Loader.construct_number,
    "map": _Loader.construct_table,
}.items():
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)


def _written(node: yaml.Node | None) -> str:
    """Return a value as it was written, text in quotes."""
    if isinstance(node, yaml.SequenceNode):
        return "[" + ", ".join(map(_written, node.value)) + "]"
    if not isinstance(node, yaml.ScalarNode):
        return ""
    return repr(node.value) if node.tag.endswith(":str") else node.value


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"{origin}{line}: {problem}", "wanted plain YAML, key: value, each key once") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the table that a YAML file holds; nothing of it is dropped or guessed, see `_Loader`.

    Raises
    ------
    UserError
        No such file, or one that is too large, no UTF-8, no plain YAML, or no table.
    """
    if not path.is_file():
        raise _no_config(path)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes", f"a config has at most {MAX_CONFIG_BYTES}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text", "name a YAML file, as configs/demo.yaml is") from None
    settings = _parse(text, str(path))
    settings = _Table() if settings is None else settings
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds {_with_kind(settings)}", "wanted YAML keys: name: ..., finetune: ...")
    return settings


def _count_from(settings: dict[str, Any], folder: Path) -> None:
    """Complete the paths of a file that lead nowhere from the current folder, and somewhere from the file's own."""
    kind = _kind_of(settings)
    start = [f"{name}.{key}" for name in BACKEND_SECTIONS for key in weights_fields(kind.model_fields[name].annotation)]
    for dotted in (*PATHS, *start):
        *tables, key = dotted.split(".")
        table: Any = settings
        for name in tables:
            table = table.get(name) if isinstance(table, dict) else None
        value = table.get(key) if isinstance(table, dict) else None
        if not isinstance(value, str) or not value or value in ("truth", "proposed", "tuned", "starter", "coco"):
            continue
        if not os.path.exists(here(value)) and os.path.exists(folder / value):
            table[key] = str(folder.resolve() / value)


def _kind_of(settings: Mapping[str, Any]) -> type[Config]:
    """Return the class of a configuration with the backends that it names; one that is not known is refused later."""
    sections = {name: settings.get(name) for name in BACKEND_SECTIONS}
    named = {name: table.get("backend") for name, table in sections.items() if isinstance(table, dict)}
    return config_class({name: backend for name, backend in named.items() if is_backend(backend)})


def _no_config(path: Path) -> UserError:
    folders = [folder for folder in (path.parent, Path("configs"), here("configs")) if folder.is_dir()]
    near = sorted({str(found) for folder in folders for found in folder.glob("*.y*ml")})
    names = {Path(name).stem: name for name in near}
    guess = nearest(str(path), near) or (f" (did you mean '{names[path.stem]}'?)" if path.stem in names else "")
    kind = "is a folder" if path.is_dir() else "does not exist"
    return UserError(
        f"config '{path}' {kind}{guess}",
        f"configs near it: {', '.join(near[:12])}" if near else "name a YAML file, as configs/demo.yaml is",
    )


def _override(settings: dict[str, Any], key: str, value: Any, written: str | None = None) -> None:
    """Set the dotted `key` in place, making the tables on the way; `written` is how messages show the value."""
    *tables, last = key.split(".")
    for depth, name in enumerate(tables):
        settings = settings.setdefault(name, _Table())
        if not isinstance(settings, dict):
            raise UserError(
                f"override {key!r}: {'.'.join(tables[: depth + 1])} is not a section",
                f"wanted a dotted key such as finetune.steps{nearest(key, known_keys())}",
            )
    if isinstance(value, Mapping) and isinstance(settings.get(last), dict):
        for name, inner in value.items():
            _override(settings[last], str(name), inner)
    else:
        settings[last] = list(value) if isinstance(value, tuple) else value
        if isinstance(settings, _Table):
            settings.written[last] = written or ""


def _share(settings: dict[str, Any], kind: type[Config], recipes: Mapping[str, type[BaseModel]]) -> None:
    """Copy the shared values into every section that has such a key and does not set its own; of recipes those named."""
    tables = [(settings, name) for name in STAGES.values()]
    known = {name: kind.model_fields[name].annotation.model_fields for name in STAGES.values()}
    known |= {name: section.model_fields for name, section in recipes.items()}
    settings["recipes"] = {} if settings.get("recipes") is None else settings["recipes"]
    if isinstance(settings["recipes"], dict):
        tables += [(settings["recipes"], name) for name in recipes if name in settings["recipes"]]
    for table, name in tables:
        section = table.setdefault(name, {})
        if section is None:
            section = table[name] = {}
        if isinstance(section, dict):
            for shared in (*SHARED, *SOME_SHARE):
                if shared in settings and shared in known[name]:
                    section.setdefault(shared, settings[shared])


def load_config(
    path: str | Path, overrides: Mapping[str, Any] | None = None, notebooks: str | Path | None = None
) -> Config:
    """Read a YAML configuration, apply overrides, check everything.

    Parameters
    ----------
    path : str or Path
        A YAML file that states what differs from the defaults; relative paths as in `here`. A relative path within it
        counts from there too; where nothing is there, from the folder of the file.
    overrides : mapping, optional
        Dotted keys to values, ``{"finetune.steps": 1}``; checked like the file itself.
    notebooks : path, optional
        The folder of notebooks whose recipes have sections; as in `cellkit.run.notebooks.read_notebooks`.

    Returns
    -------
    Config
        Frozen. Every section carries seed, classes and workers; a section may set its own.

    Raises
    ------
    UserError
        No such file, not YAML, unknown key, wrong type or value, data that no source reads: names the key, what came
        and what was wanted.
    """
    path = here(path)
    settings = read_yaml(path)
    _count_from(settings, path.parent)
    written, overrides = getattr(overrides, "written", {}), table_of(overrides or {})
    for key, value in overrides.items():
        _override(settings, key, value, written.get(key))
    recipes = recipe_sections(notebooks)
    kind = with_recipes(_kind_of(settings), recipes)
    _share(settings, kind, recipes)
    settings.setdefault("name", path.stem)
    try:
        cfg, problems = kind.model_validate(settings), []
    except ValidationError as error:
        cfg, problems = Config(), _explain(error, settings, path, overrides, kind)
    if problems:
        raise_or_collect(*problems)
        raise problems[0]
    refuse_drawn_data(cfg, path)
    cfg = with_unlabelled(cfg, path)
    note_loaded(cfg, str(path.absolute()), overrides)
    return cfg


def set_strings(strings: Iterable[str]) -> dict[str, Any]:
    """Turn ``--set`` arguments into overrides; a value is read as YAML.

    Raises
    ------
    UserError
        A string without ``=``, a value that is not YAML or of which YAML drops the rest as a comment, or a key given
        twice.

    Examples
    --------
    >>> set_strings(["finetune.steps=10", "label.diameter_px=null", "classes=[HEK, N2a]"])
    {'finetune.steps': 10, 'label.diameter_px': None, 'classes': ['HEK', 'N2a']}
    """
    found = _Table()
    for string in strings:
        key, equals, text = string.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"--set {string!r} has no key=value", "write it as --set finetune.steps=100")
        if twice := said_twice(key, value := _parse(text, f"--set {key}"), found):
            raise UserError(f"--set {twice}", "give each key once")
        found[key] = value
        node = yaml.compose(text, Loader=_Loader)
        if text[node.end_mark.index if node else 0 :].strip():
            quoted = text.strip().replace("'", "''")
            raise UserError(
                f"--set {string!r}: YAML takes what follows # for a comment and drops it",
                f"put the value in quotes: --set \"{key}='{quoted}'\"",
            )
        found.written[key] = _written(node)
    return found


# ---- what every key accepts


@lru_cache
def json_schema(kind: type[Config] = Config) -> dict[str, Any]:
    """Return the JSON schema of a configuration: types, bounds, defaults and meanings of all keys, as data."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema_of(kind)}


def published_schema() -> dict[str, Any]:
    """Return the schema for editors: in a section whose backend is named, the settings of that backend are known."""
    whole = deepcopy(json_schema())
    for section in BACKEND_SECTIONS:
        choices = []
        for backend in backend_names():
            kind = section_class(section, backend)
            own = schema_of(kind)
            own["properties"]["backend"]["const"] = backend
            if kind is not Config.model_fields[section].annotation:
                own["required"] = ["backend"]
            choices.append(own)
        field = whole["properties"][section]
        whole["$defs"].pop(field.pop("$ref").rpartition("/")[2])
        field["anyOf"] = choices
    about = "a section for each notebook in notebooks/recipes/, by its name"
    recipes = {"type": "object", "description": about, "additionalProperties": {"type": "object"}}
    whole["properties"]["recipes"] = recipes
    cluster = whole["properties"]["cluster"]
    cluster["anyOf"] = [{"type": "string"}, {"$ref": cluster.pop("$ref")}]
    return whole


@lru_cache
def known_keys(kind: type[Config] = Config) -> dict[str, dict[str, Any]]:
    """Return every dotted key with the schema of its values; sections before what they hold."""
    whole = json_schema(kind)

    def walk(table: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
        found = {}
        for name, field in table["properties"].items():
            inner = whole["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else {}
            found[prefix + name] = {**inner, **field}
            if inner:
                found |= walk(inner, f"{prefix}{name}.")
        return found

    return walk(whole)


def describe() -> str:
    """Return a Markdown table of every key: default, what is accepted, meaning."""
    rows = ["| key | default | accepted | meaning |", "|---|---|---|---|"]
    for key, field in known_keys().items():
        if "properties" not in field:
            copied = "." in key and key.rpartition(".")[2] in (*SHARED, *SOME_SHARE)
            default = "(top level)" if copied else as_yaml(field["default"])
            cells = (f"`{key}`", f"`{default}`", accepted(field), field["description"])
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


# ---- explaining


def _explain(
    error: ValidationError, settings: dict[str, Any], path: Path, overrides: Mapping, kind: type[Config]
) -> list[UserError]:
    """Turn pydantic's errors into two lines each: which key, what came, what was wanted, what to do; unknown keys first.

    What is wrong with a shared value is listed once, not for every section it was copied to.
    """
    problems = sorted(error.errors(), key=lambda one: (one["type"] != "extra_forbidden", len(one["loc"])))
    top = {one["loc"][0] for one in problems if one["loc"]}
    own = [one for one in problems if not top & {*SHARED, *SOME_SHARE} & set(one["loc"][1:])]
    by_text = {str(found): found for found in (_explained(one, settings, path, overrides, kind) for one in own)}
    return list(by_text.values())


def _explained(first: Any, settings: dict[str, Any], path: Path, overrides: Mapping, kind: type[Config]) -> UserError:
    keys = known_keys(kind)
    key = _key_at(first["loc"], keys)
    overridden = any(f"{key}.".startswith(f"{given}.") or given.startswith(f"{key}.") for given in overrides)
    where = "overrides: " if overridden else f"{path}: "
    if first["type"] == "extra_forbidden":
        table, _, name = key.rpartition(".") if "properties" in keys.get(key.rpartition(".")[0], {}) else ("", "", key)
        fields = (keys[table] if table else json_schema(kind))["properties"]
        guess = _other_backend(key, keys) or nearest(name, fields) or _elsewhere(name, keys)
        known = ", ".join(field for field in fields if not (table and field in SHARED)) or "none"
        return UserError(f"{where}unknown key {key!r}{guess}", f"known keys{' of ' + table if table else ''}: {known}")
    field = keys[key]
    inner = field.get("properties")
    default = f"keys: {', '.join(inner)}" if inner else f"default {as_yaml(field['default'])}"
    remedy = f"{key}: {field['description']}; {default}"
    if field.get("type") == "object" and not inner and len(first["loc"]) > key.count(".") + 1:
        key = f"{key}.{first['loc'][key.count('.') + 1]}"
        came = _with_kind(first["input"], _how_written(settings, key))
        return UserError(f"{where}{key} is {came}, wanted text, or null", f"{remedy}; put a name in quotes")
    if first["type"] == "value_error":
        return UserError(f"{where}{key} {str(first['ctx']['error'])}", remedy)
    wanted = accepted(field)
    if first["type"] == "multiple_of":
        step = first["ctx"]["multiple_of"]
        below = first["input"] // step * step
        wanted += f", such as {below} or {below + step}"
    value, written = _look_up(settings, key), _how_written(settings, key)
    is_text = field.get("type") == "string" and "enum" not in field
    if is_text or isinstance(value, list) and not all(isinstance(item, str) for item in value):
        remedy += "; put a name in quotes that YAML reads otherwise, such as 'NO' or '1.10'"
    return UserError(f"{where}{key} is {_with_kind(value, written)}, wanted {wanted}", remedy)


def _key_at(loc: tuple, keys: Mapping[str, Any]) -> str:
    """Return the dotted key of pydantic's `loc`; parts that are no keys are cut off."""
    key = ""
    for part in loc:
        key = f"{key}.{part}" if key else str(part)
        if "properties" not in keys.get(key, {}):
            break
    return key


def _other_backend(key: str, keys: Mapping[str, Any]) -> str:
    """Say so where a key is one of the section's usual backend, and the one that is named has no such setting."""
    named = keys.get(f"{key.rpartition('.')[0]}.backend")
    return f" (backend {named['default']} has no such setting)" if named and key in known_keys() else ""


def _elsewhere(name: str, keys: Iterable[str]) -> str:
    found = [key for key in keys if key.rpartition(".")[2] == name]
    return f" (did you mean '{found[0]}'?)" if found else ""


def _look_up(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


def _how_written(settings: Any, key: str) -> str:
    """Return how the value of a dotted key was written in the file or after --set; "" where that is not known."""
    table, _, name = key.rpartition(".")
    return getattr(_look_up(settings, table) if table else settings, "written", {}).get(name, "")


def _with_kind(value: Any, written: str = "") -> str:
    """Return a value as it came, with its kind: ``'many' (text)``."""
    kinds = {bool: "true/false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a table"}
    text = written or as_yaml(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    kind = dict if isinstance(value, dict) else type(value)
    return text if value is None else f"{text} ({kinds.get(kind, kind.__name__)})"
