"""Settings: frozen groups of typed fields, and what a field accepts in words."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

KEYWORDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
UNITS = {"px": "px", "um": "µm", "s": "s"}  # by the end of a key
HEAD = ("key", "value", "unit", "meaning")
PRIVATE = ("title", "hash", "unless", "weights")  # of a field's schema; not for readers


class Frozen(BaseModel):
    """A frozen group of fields: no unknown keys, no silent conversion between types, no NaN."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def __repr__(self) -> str:
        rows = [HEAD, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in HEAD)
        rows = ("".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) for row in self._rows())
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"

    def _rows(self, group: str = "") -> Iterator[tuple[str, str, str, str]]:
        """Yield key, value, unit and meaning of every field, those of a group under its name and a dot."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Frozen):
                yield from value._rows(f"{group}{name}.")
            else:
                yield f"{group}{name}", as_yaml(value), unit_of(name), field.description or ""


def unit_of(key: str) -> str:
    """Return the unit of a setting, which its name ends with; "" for a plain number.

    Examples
    --------
    >>> unit_of("label.diameter_px"), unit_of("steps")
    ('px', '')
    """
    return UNITS.get(key.rpartition("_")[2], "")


def _as_number(value: Any) -> Any:
    """Turn text such as '1e-3', which YAML 1.1 does not take for a number, into one; leave all else as it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_as_number)]


def as_tuple(value: Any) -> Any:
    """Turn a list, as YAML has it, into a tuple; leave all else as it is."""
    return tuple(value) if isinstance(value, list) else value


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] < value[1] <= 100:
        raise ValueError(f"is {as_yaml(value)}, wanted two rising numbers from 0 to 100")
    return value


Percentiles = Annotated[tuple[Number, Number], BeforeValidator(as_tuple), AfterValidator(_rising)]


def weights_field(default: str, description: str, *backends: str) -> Any:
    """Return a field that names weights; a training is given their path, see `cellkit.fetch.find.with_weights`.

    Parameters
    ----------
    backends : str
        Whose checkpoints fit.
    """
    return Field(default, description=description, json_schema_extra={"weights": list(backends)})


def weights_fields(settings: type[Frozen]) -> dict[str, list[str]]:
    """Return the fields that name weights, and whose checkpoints fit."""
    extras = {name: field.json_schema_extra for name, field in settings.model_fields.items()}
    return {name: extra["weights"] for name, extra in extras.items() if isinstance(extra, dict) and "weights" in extra}


def free_fields(settings: BaseModel) -> set[str]:
    """Return the fields that no result depends on, such as a number of processes or the size of a cache.

    A field that says `{"hash": False, "unless": name}` is one of them while the attribute of that name is false, 0 or null.
    """
    extras = {name: field.json_schema_extra for name, field in type(settings).model_fields.items()}
    free = {name: extra for name, extra in extras.items() if isinstance(extra, dict) and extra.get("hash") is False}
    return {name for name, extra in free.items() if not getattr(settings, str(extra.get("unless", "")), None)}


def schema_of(settings: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of settings: types, bounds, defaults and meanings of all fields, as data.

    It is pydantic's, without titles, and with the bounds that pydantic writes under names of its own renamed.
    """

    def standard(node: Any) -> Any:
        if isinstance(node, dict):
            kept = {name: inner for name, inner in node.items() if name not in PRIVATE or isinstance(inner, dict)}
            return {KEYWORDS.get(name, name): standard(inner) for name, inner in kept.items()}
        return [standard(inner) for inner in node] if isinstance(node, list) else node

    return standard(settings.model_json_schema())


def as_yaml(value: Any) -> str:
    """Return a value as YAML would show it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return "[" + ", ".join(as_yaml(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, int) else repr(value)


def accepted(field: dict[str, Any]) -> str:
    """Return in words what a field accepts.

    Examples
    --------
    >>> accepted({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]})
    'a whole number >= 1, or null'
    """
    if "anyOf" in field:
        return ", or ".join(map(accepted, field["anyOf"]))
    if "enum" in field:
        return "one of " + ", ".join(map(repr, field["enum"]))
    if field["type"] == "array":
        items = field.get("prefixItems")
        return (
            f"a list of {len(items)} {'texts' if items[0]['type'] == 'string' else 'numbers'}"
            if items
            else "a list of names"
        )
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {as_yaml(field[name])}" for name, sign in signs.items() if name in field)
    step = f", a multiple of {field['multipleOf']}" if "multipleOf" in field else ""
    kinds = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text"}
    kinds |= {"null": "null", "object": "a table of keys"}
    return f"{kinds[field['type']]} {bounds}".rstrip() + step
