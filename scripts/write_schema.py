"""Writes configs/schema.json, by which an editor completes and explains the keys of a configuration: make schema."""

import json
from pathlib import Path

from cellkit.config.reading import published_schema

PATH = Path(__file__).parents[1] / "configs" / "schema.json"


def schema_text() -> str:
    """Return the file as it should be."""
    return json.dumps(published_schema(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(schema_text(), encoding="utf-8", newline="\n")
