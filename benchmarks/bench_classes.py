"""How often a run's models name a cell's class right in newly drawn images of one line, and of several.

    python benchmarks/bench_classes.py runs/demo

The images are drawn as those of `configs/demo.yaml` are, by another seed; no training saw them. A cell counts where it is matched
at IoU > 0.5. Counts are those of all images together, with the share of each line.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.records import MIXED
from cellkit.config.reading import load_config
from cellkit.predict.model import find_model
from cellkit.scores.matching import class_errors
from cellkit.sources.drawn.files import write_fields
from cellkit.sources.ingest import convert_images

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("cellpose_classes", "maskrcnn")


def drawn(folder: Path, seed: int, mixed: int, per_line: int) -> dict[str, CellDataset]:
    """Draw fields, convert them, and return those of several lines and those of one; flagged ones are left out."""
    config = load_config(ROOT / "configs" / "demo.yaml", {}).convert
    how = {"mixed_images": mixed, "images_per_line": per_line, "defect_images_per_line": 0}
    write_fields(folder / "files", lines=config.classes, seed=seed, **config.drawn.model_dump() | how)
    images = convert_images(config, folder / "files", folder / "out").images.with_truth()
    images = images.subset([not record.flags for record in images.records])
    several = [record.cell_type == MIXED for record in images.records]
    return {"several": images.subset(several), "one": images.subset([not one for one in several])}


def row(model: str, kind: str, images: CellDataset) -> str:
    """Return a line of the table."""
    segmenter = find_model(model).load()
    found = list(segmenter(images[k][0] for k in range(len(images))))
    table = class_errors(images.instances, found, images.classes).to_numpy()
    matched = table[:-1, :-1]
    true, seen = table[:-1].sum(axis=1), table[:, :-1].sum(axis=0)
    counts = (" : ".join(map(str, one)) for one in (true, seen))
    shares = (" : ".join(f"{x:.1%}" for x in one / one.sum()) for one in (true, seen))
    right = f"{np.trace(matched) / matched.sum():.1%} of {matched.sum()}"
    return f"| {model} | {kind} | {len(images)} | {right} | {' | '.join(counts)} | {' | '.join(shares)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a finished run of configs/demo.yaml")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seed", type=int, default=4242, help="no rule was chosen by the images of 4242 (default)")
    parser.add_argument("--mixed", type=int, default=24, help="images of several lines (default 24)")
    parser.add_argument("--per-line", type=int, default=4, help="images of each line alone (default 4)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts = drawn(Path(folder), given.seed, given.mixed, given.per_line)
        print("| model | lines in an image | images | class right | true | found | true share | found share |")
        print("|---|---|---|---|---|---|---|---|")
        for model in given.models:
            for kind, images in parts.items():
                print(row(f"{given.run}:{model}", kind, images), flush=True)


if __name__ == "__main__":
    main()
