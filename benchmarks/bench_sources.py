"""Load every set of the data folder whole, and count: `python benchmarks/bench_sources.py --data FOLDER [--workers 2]`.

Each set goes through notebook 01's own function: records, instances, pictures and their quality. What is found is compared with
what the sets' authors state, or with the set's own tables; a set that differs ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from types import MappingProxyType

from cellkit.config.sections import ConvertConfig
from cellkit.sources.ingest import convert_images

WHOLE = {"train": 1.0, "val": 0.0, "test": 0.0}
GREY = {"nuclei": 0}
SETS = MappingProxyType({  # name: (images, objects, seconds wanted, the section `convert`)
    "dsb2018": (565, 24737, 20, {"source": "dsb2018", "channels": {"nuclei": "red"}, "classes": ("nucleus",)}),
    "two_lines": (77, 3204, None, {"source": "two_lines", "channels": GREY, "classes": ("u2os", "nih3t3"), "mixed_images": 0}),
    "dkfz": (200, 2002, None, {
        "source": "labelme", "channels": {"nuclei": "blue", "cytoplasm": "red"},
        "classes": ("UndifferentiatedMSC", "Myofibroblast"), "class_names": {"PartiallydifferentiatedMSC": None},
    }),
    "sartorius": (85, 7806, None, {"source": "sartorius", "channels": {"cytoplasm": 0}, "classes": ("astro", "cort", "shsy5y")}),
    "hepg2_huh7": (41, 3726, None, {"source": "hepg2_huh7", "channels": {"nuclei": "blue"}, "classes": ("HepG2", "Huh7")}),
    "bccd": (292, 3943, None, {
        "source": "voc", "channels": {"nuclei": "blue", "cytoplasm": "green"}, "classes": ("RBC", "WBC", "Platelets"),
    }),
    "blood": (80, 1849, None, {
        "source": "box_csv", "channels": {"nuclei": "blue", "cytoplasm": "green"}, "classes": ("rbc", "wbc"),
    }),
    "small_pairs": (1, 125, None, {"source": "folder", "channels": GREY, "pair": ("img", "mask"), "classes": ("nucleus",)}),
})  # fmt: skip


def load(root: Path, told: dict, workers: int) -> tuple[int, int, float]:
    """Return images, objects and seconds of one set, converted into a folder that is thrown away."""
    config = ConvertConfig(**{"split": WHOLE, "duplicates": "keep"} | told, workers=workers)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        made = convert_images(config, root, Path(folder))
        return len(made.images.records), sum(map(len, made.images.instances or ())), time.perf_counter() - begun


def main() -> int:
    """Print one row per set; return 1 if one differs from what is stated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CELLKIT_DATA", "../shared/data")))
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    print("| set | images | objects | as stated | s | wanted, s |\n|---|---|---|---|---|---|")
    different = 0
    for name, (images, objects, wanted, told) in SETS.items():
        if not (given.data / name).is_dir():
            print(f"| {name} | not here | | | | |")
            continue
        found = load(given.data / name, told, given.workers)
        same = found[:2] == (images, objects)
        different += not same
        verdict = "yes" if same else f"no: {images}, {objects}"
        print(f"| {name} | {found[0]} | {found[1]} | {verdict} | {found[2]:.1f} | {wanted or ''} |", flush=True)
    return int(different > 0)


if __name__ == "__main__":
    raise SystemExit(main())
