"""What it changes to read each class its own way: `python benchmarks/box_reading.py --config configs/blood.yaml --run RUN`.

RUN has 01. One network learns from every other training image. The training images that it has not seen choose a score for each
class, from which on cells count: read as all are, and each class its own way (`cellkit.evaluate.box_reading`). Validation and
test images are counted both ways. A training that is there is not made again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from jobs import prepare

from cellkit.cells.dataset import predict_all
from cellkit.config.reading import load_config
from cellkit.evaluate.box_counts import box_totals, count_errors, counted_cells, thresholds_table
from cellkit.evaluate.box_reading import GRID, count_thresholds, read_by_class, readings_of
from cellkit.labelling.box_masks import read_boxes, with_masks
from cellkit.models import unet_border


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="configuration with recipes.blood_cells")
    parser.add_argument("--run", type=Path, required=True, help="run folder with the images and boxes of 01")
    parser.add_argument("--work", type=Path, default=Path("box_reading"), help="folder of the network")
    given = parser.parse_args()
    prepare("cpu")
    config = load_config(given.config, {"precision": "float32"}).section("blood_cells")
    boxes = read_boxes(given.run / "truth.json", given.run).scored()
    train, judged = boxes.select("train"), boxes.held_out()
    unseen = train.subset(np.arange(len(train)) % 2 == 0)
    masks, told = with_masks(train.subset(np.arange(len(train)) % 2 == 1), config.masks)
    print(told)
    model = unet_border.live(unet_border.train(masks, masks.subset([]), config, given.work))
    ways = [readings_of(model.look(image)) for image in unseen.images()]
    default = tuple(values[0] for values in GRID.values())
    as_all = [dict.fromkeys(of_image, of_image[default]) for of_image in ways]
    for name, readings in (("all classes alike", as_all), ("each class its own way", ways)):
        rule = count_thresholds(unseen, readings)
        found = predict_all(read_by_class(model, rule), judged, name)
        counts = count_errors(judged, counted_cells(found, rule))
        with pd.option_context("display.width", 200, "display.max_columns", None):
            print(f"\n{name}\n{thresholds_table(rule)}\n{box_totals(counts, judged, found)}")
    print(f"{time.process_time():.0f} CPU seconds")


if __name__ == "__main__":
    main()
