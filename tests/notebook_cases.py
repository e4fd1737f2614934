"""Notebooks run here, in the process of the test."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt

REPO = Path(__file__).parent.parent


def execute(stage: str, config: Path, run_dir: Path, **settings) -> None:
    """Run the code cells of a notebook here, one after the other."""
    scope: dict = {}
    for cell in json.loads((REPO / f"notebooks/{stage}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{stage} {cell['id']}", "exec"), scope)
            plt.close("all")  # as a notebook does after each cell
        if "parameters" in cell["metadata"].get("tags", []):
            scope |= {"config": str(config), "run_dir": str(run_dir), "overrides": settings}
