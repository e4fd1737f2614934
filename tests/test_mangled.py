"""What `benchmarks/chaos_inputs.py` found: each finding with the smallest input that showed it, read by the same parser."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from chaos_inputs import lay_out, mangled, names, outcome, parser_of
from chaos_parsers import tiff, zipped

from cellkit.formats.measured import read_cells_table

PIXELS = np.arange(16, dtype=np.uint16).reshape(4, 4)


def tagged(tag: int, kind: int, count: int, value: int, content: bytes | None = None) -> bytes:
    """Return a small TIFF of which one tag has another type, count and value."""
    content = tiff(PIXELS) if content is None else content
    at = content.index(struct.pack("<H", tag), struct.unpack_from("<I", content, 4)[0])
    return content[:at] + struct.pack("<HHII", tag, kind, count, value) + content[at + 12 :]


LIF_OF_4_GB = struct.pack("<IIBI", 0x70, 2**32 - 1, 0x2A, 2**31)
NPY_OF_NO_HEADER = b"\x93NUMPY\x01\x00\x05\x00{'a'("

SHAPE = {"label": "cell", "shape_type": "polygon", "points": [[0, 0], [3, 0], [3, 2]]}


def labelme(named: str, **changed) -> bytes:
    """Return a labelme file that names a picture, with one shape."""
    return json.dumps({"imagePath": named, "shapes": [SHAPE | changed]}).encode()


def coco(named: str, **changed) -> bytes:
    """Return a COCO file of one image of that name, with one cell."""
    cell = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 2]]} | changed
    image = {"id": 1, "file_name": named, "height": 24, "width": 32}
    return json.dumps({"images": [image], "categories": [{"id": 1, "name": "cell"}], "annotations": [cell]}).encode()


def manifest(entry: object) -> bytes:
    """Return the manifest of a run with one stage."""
    return json.dumps({"format": 1, "stages": {"01_convert": entry}, "attempts": {}}).encode()


ZIP_WITHOUT_NAME = (
    "UEsDBBQAAAAIAKukel10lHU8CAAAACQAAAAHAAAAYS9iLnR4dCtJrSgp/4ABUEsDBBQAAAAIAKukel1v37kGAwAAAAEAAAAFAAAAYy50eHRLBg"
    "BQSwECFAMUAAAACACrpHpddJR1PAgAAAAkAAAABwAAAAAAAAAAAAAAgAEAAAAAYS9iLnR4dFBLAQIUAxQAAAAIAKukel1v37kGAwAAAAEAAAAF"
    "AAAAAAAAAAAAAACAAS0AAAAAAIB4dFBLBQYAAAAAAgACAGgAAABTAAAAAAA="
)
SHIFTED = zipped({"a": b"a"})
ROI_WITHOUT_PATH = (
    "SW91dADlCAAADAAKABQAGQAEAA0AAAAAAAAAAAAAAAAAAJgAAAAuAAAAAAAAAAAAAAAAAAAAAAAwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAFAAAAAPAA8AAAAAAAAACAAIAAAAAAAAAAAAAAAAAAAAAAAAAJAAAAAEAAAAAAAAAgAAAAAAAAAAAAAAAJgAAAAuAAAAAAAAAAAA"
    "AAAAAAAAAAAwADAAMAAyAGMAZQBsAGwAawBpAHQALgBjAGwAYQBzAHMAZQBzADoAIABIAEUASwAsAE4AMgBhAAoAYwBlAGwAbABrAGkAdAAuAH"
    "MAaABhAHAAZQA6ACAAMgA0ACwAMwAyAAo="
)


def boxes(name: str) -> bytes:
    """Return a table of boxes with a row that names a picture so."""
    return f"filename,xmin,ymin,xmax,ymax,label\na.png,10,4,20,12,cell\n{name},3,4,9,12,cell\n".encode()


# parser: {what was wrong: input}
FOUND = {
    "tiff": {
        "3 GB asked for a strip": tagged(279, 4, 1, 3 * 2**30),
        "TypeError of a photometric interpretation of two numbers": tagged(262, 3, 2, 0x10001),
    },
    "label tiff": {"3 GB asked for a strip": tagged(279, 4, 1, 3 * 2**30)},
    "box csv": {"KeyError of a row without a picture": boxes("")},
    "lif": {"4 GB asked for an XML header that is not there": LIF_OF_4_GB},
    "labelme": {
        "OverflowError of a coordinate without end": labelme("a.png", points=[[10**400, 0], [1, 1], [2, 0]]),
        "ValueError of a name with a zero": labelme("a\0.png"),
        "UnicodeEncodeError of a name that is no text": labelme("\ud800.png"),
        "OSError of a name too long": labelme("a" * 300),
    },
    "coco set": {
        "OSError of a name too long": coco("a" * 300),
        "UnicodeEncodeError of a name that is no text": coco("\ud800.png"),
    },
    "roi": {"AttributeError of a composite without its path": ROI_WITHOUT_PATH},
    "yaml": {
        "KeyError of an unknown key with a full stop": b"a.b: 1\n",
        "KeyError of one in a table": b"convert:\n  split:\n    val.x: 1\n",
        "KeyError of one that begins as a known one": b"convert.split.val 0: 1\n",
    },
    "notebook": {
        "AttributeError of metadata": b'{"cells": [], "metadata": 1}',
        "AttributeError of metadata of ours": b'{"cells": [], "metadata": {"cellkit": 1}}',
        "AttributeError of metadata of a cell": b'{"cells": [{"cell_type": "code", "source": "", "metadata": 1}]}',
    },
    "manifest": {
        "AttributeError of a stage": manifest([]),
        "TypeError of an output": manifest({"status": "finished", "outputs": {"records": 1}}),
        "TypeError of a path": manifest({"status": "finished", "outputs": {"records": {"path": 1, "sha256": ""}}}),
        "AttributeError of inputs": manifest({"status": "finished", "outputs": {}, "inputs": 1}),
        "AttributeError of versions": manifest({"status": "finished", "outputs": {}, "versions": 1}),
    },
    "zip": {
        "IndexError of a member without a name": ZIP_WITHOUT_NAME,
        "OSError of a member before the beginning": SHIFTED[:-6] + struct.pack("<I", 9999) + SHIFTED[-2:],
    },
    "card": {"UnicodeDecodeError of a card that is no text": b'{"backend": "\xff"}'},
    "seg": {"TokenError of a header that is no Python": NPY_OF_NO_HEADER},
}  # fmt: skip


@pytest.mark.parametrize(("name", "what"), [(name, what) for name, some in FOUND.items() for what in some])
def test_what_was_found_is_refused_in_words(name, what, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parser, folder = parser_of(name, tmp_path / "good"), tmp_path / "here"
    lay_out(parser, folder)
    given = FOUND[name][what]
    file, content = given if isinstance(given, tuple) else (next(iter(parser.files)), given)
    (folder / file).write_bytes(base64.b64decode(content) if isinstance(content, str) else content)
    how, why = outcome(parser, folder)
    assert how in ("refused", "read"), why


def test_a_sub_block_of_very_many_dimensions_does_not_end_the_process(tmp_path):
    parser, folder = parser_of("czi", tmp_path / "good"), tmp_path / "here"
    lay_out(parser, folder)
    path = folder / next(iter(parser.files))
    content = bytearray(path.read_bytes())
    second = content.index(b"ZISRAWSUBBLOCK", content.index(b"ZISRAWSUBBLOCK") + 1)
    content[second + 79] = 255
    path.write_bytes(content)
    how, why = outcome(parser, folder)
    assert how == "refused", why


def test_a_label_of_more_digits_than_a_float_holds_is_refused(tmp_path):
    parser, folder = parser_of("cells table", tmp_path / "good"), tmp_path / "here"
    lay_out(parser, folder)
    path = folder / "a.csv"
    head, first, *rest = path.read_text().splitlines()
    label = head.split(",").index("label")
    cells = first.split(",")
    cells[label] = "9" * 400
    path.write_text("\n".join([head, ",".join(cells), *rest]) + "\n")
    how, why = outcome(parser, folder)
    assert how == "refused", why


def test_a_notebook_cell_of_half_a_character_is_read_as_no_python(tmp_path):
    parser, folder = parser_of("notebook", tmp_path / "good"), tmp_path / "here"
    lay_out(parser, folder)
    path = folder / next(iter(parser.files))
    book = json.loads(path.read_text())
    for source in ("\ud800", "(" * 5000):
        book["cells"][0] |= {"cell_type": "code", "source": source, "outputs": [], "execution_count": None}
        path.write_text(json.dumps(book))
        how, why = outcome(parser, folder)
        assert how in ("refused", "read"), why


def test_a_chunk_longer_than_the_file_asks_for_no_memory(tmp_path):
    parser, folder = parser_of("label png", tmp_path / "good"), tmp_path / "here"
    lay_out(parser, folder)
    path = folder / next(iter(parser.files))
    content = path.read_bytes()
    at = content.index(b"IDAT") - 4
    path.write_bytes(content[:at] + b"\xd0" + content[at + 1 :])
    tracemalloc.start()
    try:
        how, why = outcome(parser, folder)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert how in ("refused", "read"), why
    assert most < 2**26


def test_a_row_longer_than_its_header_is_refused_at_once(tmp_path):
    path = tmp_path / "cells.csv"
    for row, told in (("a,1,7" + "," * 1_000_000, "1000003 fields"), ("a,1,7,", "4 fields")):
        path.write_text(f"image,label,area_px\n{row}\n")  # pandas would take "a" for the name of the row
        began = time.process_time()
        with pytest.raises(ValueError, match=f"3 columns, the row after it {told}"):
            read_cells_table(path)
        assert time.process_time() - began < 5
    path.write_text(",".join(map(str, range(10_001))) + "\n")
    with pytest.raises(ValueError, match="it has 10001 columns, a table of cells 10000 at most"):
        read_cells_table(path)
    path.write_text("\nimage,label,area_px\na,1,7\n")
    packed = tmp_path / "cells.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_cells_table(packed).values.tolist() == [["a", 1, 7]]
    assert read_cells_table(path).values.tolist() == [["a", 1, 7]]


def test_mangling_is_the_same_each_time_and_every_parser_is_listed(tmp_path):
    import random

    for form in ("json", "text", "zip", "gzip", "png", "bytes"):
        content = b'{"a": [1, 2, "x"]}'
        assert len({mangled(content, form, random.Random(k)) for k in range(20) for _ in range(2)}) > 5
        assert mangled(content, form, random.Random(7)) == mangled(content, form, random.Random(7))
    wanted = {"tiff", "lif", "czi", "zarr 0.5", "png", "coco", "labelme", "voc", "box csv", "roi", "seg", "geojson", "yaml",
              "notebook", "safetensors", "torch file", "zip", "tar"}  # fmt: skip
    assert wanted <= {*names()}
    assert Path(parser_of.__code__.co_filename).name == "chaos_parsers.py"
