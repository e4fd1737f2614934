"""Files that are small and would become large: the last of the attacks that SECURITY.md lists, see test_attacks.py."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from fault_cases import CELL, GREY, save

LARGE = 700 * 10**6


@cache
def zeros() -> bytes:
    """Return `LARGE` zeros, deflated: one piece repeated, so that it takes no time."""
    packer = zlib.compressobj(9)
    first = packer.compress(bytes(10**6)) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(10**6)) + packer.flush(zlib.Z_FULL_FLUSH)
    check = 1
    for _ in range(LARGE // 10**6):
        check = zlib.adler32(bytes(10**6), check)
    return first + piece * (LARGE // 10**6 - 1) + b"\3\0" + struct.pack(">I", check)


def bomb_strip(path: Path) -> None:
    """Write a TIFF of 40 x 50 px whose one strip unpacks to `LARGE` bytes."""
    tifffile.imwrite(path, GREY, compression="zlib", rowsperstrip=40)
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        places = {
            tags["StripOffsets"].valueoffset: path.stat().st_size,
            tags["StripByteCounts"].valueoffset: len(zeros()),
        }
    content = bytearray(path.read_bytes())
    for place, value in places.items():
        content[place : place + 4] = struct.pack("<I", value)
    path.write_bytes(bytes(content) + zeros())


def bomb_png(side: int) -> bytes:
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def bomb_text_png() -> bytes:
    """Return a small picture with a compressed text of 200 MB."""
    content = save_bytes(GREY.astype(np.uint8))
    body = b"note\0\0" + zlib.compress(bytes(200 * 10**6), 9)
    text = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return content[:33] + text + content[33:]


def save_bytes(pixels: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


BILLION = "<!DOCTYPE OME [<!ENTITY a0 'ha'>{}]><OME>&a12;</OME>".format(
    "".join(f"<!ENTITY a{k} '{f'&a{k - 1};' * 10}'>" for k in range(1, 13))
)


@pytest.mark.parametrize(
    "kind", ["png", "text in a png", "strip of a tiff", "xml in a tiff", "zip", "zarr", "safetensors", "run lengths"]
)
def test_attack_11_decompression_bomb(said, tmp_path, kind):
    """Each would be far more; refused, or read without what it hides, within 400 MB more than before."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = tmp_path / "in"
    folder.mkdir()
    arguments = ["convert", folder, "-o", tmp_path / "out", "--nuclei", 0]
    if kind == "png":
        (folder / "a.png").write_bytes(bomb_png(60_000))
    elif kind == "text in a png":
        (folder / "a.png").write_bytes(bomb_text_png())
    elif kind == "strip of a tiff":
        bomb_strip(folder / "a.tif")
    elif kind == "xml in a tiff":
        tifffile.imwrite(folder / "a.ome.tif", GREY, description=BILLION)
    elif kind == "zip":
        with zipfile.ZipFile(tmp_path / "a_rois.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for k in range(20):
                archive.writestr(f"{k}.roi", bytes(10**7))
        arguments = ["coco", tmp_path / "a_rois.zip", "-o", tmp_path / "c.json"]
    elif kind == "zarr":
        array = {"zarr_format": 2, "shape": [4, 4], "chunks": [4, 4], "dtype": "|u1", "compressor": {"id": "zlib", "level": 9},
                 "filters": None, "fill_value": 0, "order": "C"}  # fmt: skip
        (folder / "a.zarr" / "0").mkdir(parents=True)
        (folder / "a.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
        space = [{"name": axis, "type": "space"} for axis in "yx"]
        scales = {"multiscales": [{"version": "0.4", "axes": space, "datasets": [{"path": "0"}]}]}
        (folder / "a.zarr" / ".zattrs").write_text(json.dumps(scales))
        (folder / "a.zarr" / "0" / ".zarray").write_text(json.dumps(array))
        (folder / "a.zarr" / "0" / "0.0").write_bytes(zeros())
    elif kind == "safetensors":
        (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
        save(folder / "a.png", GREY.astype(np.uint8))
        arguments = ["predict", tmp_path / "m.safetensors", folder, "-o", tmp_path / "f.json"]
    else:
        giant = {"id": 1, "file_name": "a.png", "height": 2**18, "width": 2**18}
        told = {"images": [giant], "categories": [{"id": 1, "name": "cell"}],
                "annotations": [CELL | {"segmentation": {"size": [2**18, 2**18], "counts": [0, 2**36]}}]}  # fmt: skip
        (tmp_path / "t.json").write_text(json.dumps(told))
        arguments = ["labels", tmp_path / "t.json", "-o", tmp_path / "out"]
    code, out, err = said(*arguments)
    assert code in (0, 2, 3) and "Traceback" not in err + out, err
    assert code != 0 or kind in ("text in a png", "xml in a tiff")
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert more < 400_000, f"{more / 1e6:.1f} GB"
