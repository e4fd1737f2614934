"""Eleven thousand mangled files are read right or refused.

They are read in a process of their own, with little memory and a watch, so that a crash, a hang or a bomb in a library is a
failure of one test and names its file. ``python tests/formats/test_fuzz.py coco 1234 FILE`` writes number 1234 again.
"""

import contextlib
import copy
import faulthandler
import io
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

from cellkit.cells.instances import Instances
from cellkit.commands.comparison import score_sides
from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.formats.any import read_folder, read_side
from cellkit.formats.geojson import write_geojson
from cellkit.formats.sides import match_sides
from cellkit.formats.submission_check import check_submission

MANGLED = {"coco": 4_000, "results": 3_000, "csv": 3_000, "geojson": 1_000}
SLOWEST_S = 2.0  # what any one small file may take
MEMORY_BYTES = 3 * 2**30


# ---- mangling ------------------------------------------------------------------------------------------------------
SHAPE = (6, 7)
NASTY = [
    None, True, False, 0, 1, -1, 2, 7, 0.5, 1e9, -1e9, 1e308, math.nan, math.inf, -math.inf, 2**18, 2**31, 2**53, 2**63, 10**30,
    10**400, "", "1", "-1", "unknown", "x" * 300, "\ud800", "\x00", "../../x", "=1+1", "٣", "327", "Z1", "PPPPPPPPPP", [], [[]],
    [[[]]], [1, 2], [1, 2, 3, 4, 5, 6], [[0, 0, 5, 0, 5, 5]], [[0, 0, 5]], [[math.nan, 0, 5, 0, 5, 5]], [[1e9, 0, 5, 0, 5, 5]],
    [[1e9, -1e9, -1e9, 1e9, 1e9, 1e9]], [[1e5, -1e5, 3, 3, 1, 9]], [["0", 0, 5, 0, 5, 5]], {}, {"size": [6, 7], "counts": [42]},
    {"size": [6, 7], "counts": [3, 2]}, {"size": [6, 7], "counts": [-1, 43]}, {"size": [6, 7], "counts": "Z1"},
    {"size": [2**18, 2**18], "counts": [0, 2**36]}, {"size": [], "counts": "Z1"}, {"size": ["6", 7], "counts": "Z1"},
]  # fmt: skip
SCRAPS = [
    b"",
    b"",
    b'"',
    b"}",
    b"]",
    b"[",
    b"{",
    b",",
    b":",
    b"\\",
    b"9",
    b"-",
    b".",
    b"e9",
    b"NaN",
    b"1e999",
    b"\xef\xbb\xbf",
]
SCRAPS += [
    b"\x00",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\n",
    b"\r",
    b"9" * 30,
    b"9" * 5000,
    b"[" * 50_000,
    b'{"a":' * 20_000,
]


def good_coco():
    """Two images with everything that a COCO file may hold."""
    cells = [
        Instances.from_labels(np.random.default_rng(k).integers(0, 4, SHAPE), scores=[0.2, 0.5, 0.9]).with_classes(
            [0, 1, 2]
        )
        for k in range(2)
    ]
    images = [
        {"id": k + 1, "file_name": f"{name}.png", "height": 6, "width": 7, "image_id": name, "split": "train"}
        for k, name in enumerate("ab")
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(("HEK", "N2a", "unknown"), 1)]
    annotations = []
    for image_id, found in enumerate(cells, 1):
        for rle, k, score in zip(found.to_coco_rle(), (3, 1, 2), found.scores.tolist(), strict=True):
            about = {"image_id": image_id, "category_id": k, "segmentation": rle, "score": score, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **about})
    polygon = {"segmentation": [[0, 0, 5, 0, 5, 4, 0, 4], [5.5, 4.5, 6, 5, 6, 6]], "iscrowd": 1, "score": 1}
    counts = {"segmentation": {"size": [6, 7], "counts": [3, 5, 34]}, "score": 0.1, "bbox": [0, 3, 2, 5], "area": 5}
    annotations += [
        {"id": 90, "image_id": 1, "category_id": 1, **polygon},
        {"id": 91, "image_id": 2, "category_id": 2, **counts},
    ]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}


def good_results():
    rows = good_coco()["annotations"]
    return [{k: row[k] for k in ("image_id", "category_id", "segmentation", "score")} for row in rows[:-2]]


def good_csv():
    cells = Instances.from_labels(np.arange(42).reshape(SHAPE) // 5 % 4)
    return "".join(f"{row}\n" for row in ["id,predicted", *(f"a,{t}" for t in cells.to_kaggle_rle("row-major")), "b,"])


def good_geojson():
    """One image as cellkit writes it: detections, a cell with its nucleus, a hole, pieces, a region to ignore."""
    labels = np.array([[1, 1, 1, 0, 0, 0, 2], [1, 0, 1, 0, 3, 3, 0], [1, 1, 1, 0, 3, 3, 2], *[[0] * 7] * 3])
    cells = Instances.from_labels(labels, [1, 2, 0], [0.2, 0.5, 1]).with_unknown(np.arange(42).reshape(SHAPE) > 34)
    nuclei = Instances.from_masks([labels == 9, labels == 9, (labels == 3) & (np.arange(7) == 4)], SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        about = {"nuclei": nuclei, "measured": {"area_px": cells.areas_px}}
        return write_geojson(Path(folder, "a.geojson"), cells, ("HEK", "N2a"), **about).read_text(encoding="utf-8")


GOOD = {"coco": json.dumps(good_coco()), "results": json.dumps(good_results()), "csv": good_csv()}
GOOD["geojson"] = good_geojson()


def places(value, at=()):
    """List every place of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in items for place in places(part, (*at, key)))]


def part_at(data, path):
    for step in path:
        data = data[step]
    return data


def mangled_value(data, rng):
    """Change a JSON value at one to four places: drop, repeat, nudge, swap, damage or replace."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        choices = places(data)[1:]
        if not choices:
            break
        *path, key = rng.choice(choices)
        parent = part_at(data, path)
        old, change = parent[key], rng.randrange(7)
        if change == 0:
            del parent[key]
        elif change == 1 and isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(old))
        elif change == 2 and type(old) in (int, float) and abs(old) < 1e300:
            parent[key] = old + rng.choice([-1, 1, 0.5, 1000, -1000])
        elif change == 3:
            parent[key] = copy.deepcopy(part_at(data, rng.choice(choices)))
        elif change == 4 and isinstance(old, str) and old:
            at = rng.randrange(len(old) + 1)
            parent[key] = old[:at] + chr(rng.choice([*range(40, 120), 0, 0xD800])) + old[at + rng.randrange(3) :]
        elif change == 5:
            for _ in range(rng.choice([1, 2, 90])):
                parent[key] = [parent[key]] if rng.random() < 0.7 else {"a": parent[key]}
        else:
            parent[key] = copy.deepcopy(rng.choice(NASTY))
    return data


def mangled_bytes(raw, rng):
    """Cut, flip, repeat, insert or shuffle bytes."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, kind = rng.randrange(len(raw) + 1), rng.randrange(7)
        if kind == 0:
            del raw[at:]
        elif kind == 1 and raw:
            raw[at % len(raw)] = rng.randrange(256)
        elif kind == 2:
            del raw[at : at + rng.randint(1, 10)]
        elif kind == 3:
            raw[at:at] = raw[rng.randrange(len(raw) + 1) :][: rng.randint(1, 40)]
        elif kind == 4:
            lines = raw.split(b"\n")
            rng.shuffle(lines)
            raw = bytearray(b"\n".join(lines))
        else:
            raw[at : at + rng.randrange(3)] = rng.choice(SCRAPS)
    whole = rng.randrange(40)
    text = bytes(raw)
    if whole == 0:
        return text.decode("utf-8", "replace").encode("utf-16")
    return b"\xef\xbb\xbf" + text if whole == 1 else text.replace(b"\n", b"\r\n") if whole == 2 else text


def mangled_file(kind, number):
    """Return the bytes of one damaged file; the same for the same number."""
    rng = random.Random(f"{kind} {number}")
    if kind == "csv":
        return mangled_bytes(GOOD[kind].encode(), rng)
    text = GOOD[kind]
    if rng.random() < 0.7:
        text = json.dumps(mangled_value(json.loads(text), rng), ensure_ascii=rng.random() < 0.8)
    raw = text.encode("utf-8", "surrogatepass")
    return mangled_bytes(raw, rng) if text == GOOD[kind] else raw


# ---- reading what is mangled ---------------------------------------------------------------------------------------
def read_mangled(kind, path, truth, number):
    """Read a mangled file as `cellkit score` and `cellkit check-submission` do, and look at what came out of it."""
    if kind == "coco":
        side = read_side(path)
        truth = side
    elif kind == "results":
        side = read_side(path, of=truth, common=number % 2 == 0)
    elif kind == "geojson":
        side, left_out = (read_side(path, shapes={"mangled": SHAPE}), []) if number % 3 == 0 else read_folder(path)
        assert all(item.reason for item in left_out)
        truth = side
    else:
        shapes = {"a": SHAPE, "b": SHAPE}
        problems = check_submission(path, "sartorius", shapes)
        assert all(problem.reason and problem.line >= 0 for problem in problems)
        side = read_side(path, profile="sartorius", shapes=shapes)
        assert all("shares pixels" in problem.reason or "repeats" in problem.reason for problem in problems)
        truth = side
    assert len(side.records) == len(side.instances)
    for record, cells in zip(side.records, side.instances, strict=True):
        assert_sound(cells, (record.height_px, record.width_px), len(side.classes))
    if number % 5 == 0:
        told = score_sides(*match_sides(truth, side, common=True), bootstrap=0)
        json.dumps(told, allow_nan=False)


def on_the_command_line(truth, path):
    """Score a file that can be read: the answer can be printed, or the file is refused."""
    told, complaints = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(complaints):
        arguments = [str(truth), str(path), "--common", "--bootstrap", "0", "--profile", "sartorius"]
        code = main(["score", *arguments, "--convention", "kaggle,voc", "--by", "class_name"])
    assert code in (0, 2), complaints.getvalue()
    lines = [line for line in complaints.getvalue().splitlines() if not line.startswith("note: ")]
    assert len(lines) == (2 if code == 2 else 0), complaints.getvalue()


def assert_sound(cells, shape, classes):
    assert cells.shape == shape
    assert cells.starts.min(initial=0) >= 0
    assert (cells.starts + cells.lengths).max(initial=0) <= shape[0] * shape[1]
    assert cells.class_ids.min(initial=0) >= 0
    assert cells.class_ids.max(initial=0) <= classes
    assert np.isfinite(cells.scores).all()
    if shape[0] * shape[1] < 10**6:
        again = Instances.from_coco_rle(cells.to_coco_rle(), shape, cells.class_ids, cells.scores)
        assert again.with_unknown(cells.unknown_mask) == cells


def read_all(kind, folder):
    """Read every mangled file of a kind; return how many were read and refused, the slowest, and what failed."""
    ending = kind if kind in ("csv", "geojson") else "json"
    truth_path, path = Path(folder, "truth.json"), Path(folder, f"mangled.{ending}")
    truth_path.write_text(json.dumps(good_coco()))
    truth, told = read_side(truth_path), {"read": 0, "refused": 0, "slowest_s": 0.0, "slowest": -1, "failed": []}
    at = os.open(Path(folder, "at"), os.O_RDWR | os.O_CREAT)
    on_the_command_line(truth_path, truth_path)  # what is imported on first use counts for no file
    for number in range(MANGLED[kind]):
        path.write_bytes(mangled_file(kind, number))
        os.pwrite(at, b"%6d" % number, 0)
        faulthandler.dump_traceback_later(10 * SLOWEST_S, exit=True)  # it hangs: say where
        begun = time.process_time()
        try:
            read_mangled(kind, path, truth, number)
            told["read"] += 1
            if number % 3 == 0:
                on_the_command_line(truth_path if kind == "results" else path, path)
        except UserError as error:
            told["refused"] += 1
            if "\n" not in str(error):
                told["failed"].append([number, f"says not what to do: {error}"])
        except Exception:
            told["failed"].append([number, traceback.format_exc()[-1500:]])
        spent = time.process_time() - begun
        if spent > told["slowest_s"]:
            told |= {"slowest_s": spent, "slowest": number}
    faulthandler.cancel_dump_traceback_later()
    return told


@pytest.mark.parametrize("kind", MANGLED)
def test_ten_thousand_mangled_files_are_read_right_or_refused(kind, tmp_path):
    assert sum(MANGLED.values()) == 11_000
    command = [sys.executable, "-X", "faulthandler", __file__, kind, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    at = (tmp_path / "at").read_text() if (tmp_path / "at").exists() else "?"
    assert done.returncode == 0, f"{kind} {at}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    told = json.loads(done.stdout)
    assert not told["failed"], "\n".join(f"{kind} {number}: {text}" for number, text in told["failed"][:5])
    assert told["read"] + told["refused"] == MANGLED[kind]
    assert told["slowest_s"] < SLOWEST_S, told
    assert told["read"] > 0.02 * MANGLED[kind], told
    assert told["refused"] > 0.3 * MANGLED[kind], told


def _limit_memory():
    try:
        import resource
    except ImportError:  # not on Windows
        return
    if sys.platform.startswith("linux"):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        Path(sys.argv[3]).write_bytes(mangled_file(sys.argv[1], int(sys.argv[2])))
    else:
        _limit_memory()
        print(json.dumps(read_all(*sys.argv[1:])))
