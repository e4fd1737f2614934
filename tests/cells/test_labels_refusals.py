"""Label images that are refused: cut short, giants, lossy, colours, too many ids."""

import warnings
import zlib

import numpy as np
import pytest
import tifffile
from label_cases import picture, refused
from PIL import Image

from cellkit.errors import UserError
from cellkit.formats.label_images import read_labels, write_labels

# ---- refuse --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_pictures_are_no_labels(tmp_path, mode):
    Image.new(mode, (4, 3)).save(tmp_path / "a.png")
    assert f"is a colour picture ({mode})" in refused(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((4, 5), 0.5, np.float32), "(4, 5) float32 with values such as 0.5"),
        (np.array([[0, np.nan]], np.float32), "values such as nan"),
        (np.array([[0, np.inf]]), "values such as inf"),
        (np.array([[0, 2.0**24 + 2]], np.float32), "counts one by one to 16777216"),
        (np.array([[0.0, -2.0]], np.float32), "ids from -2 to 0"),
        (np.array([[0, -1, -2]], np.int16), "ids from -2 to 0"),
        (np.zeros((4, 5, 3), np.uint8), "(4, 5, 3) uint8"),
        (np.arange(40, dtype=np.uint16).reshape(2, 4, 5), "labels of a stack, 2 planes that differ"),
        (np.array([[0, -3]], np.int16), "ids from -3 to 0"),
        (np.array([[0, 2**31]], np.uint32), "ids from 0 to 2147483648"),
        (np.array([[0, 2**63]], np.uint64), "ids from 0 to 9223372036854775808"),
    ],
)
def test_tiffs_that_are_no_labels(tmp_path, array, reason):
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb" if array.shape[-1] == 3 else "minisblack")
    message = refused(tmp_path / "a.tif")
    assert reason in message
    assert "\n" in message, "the second line says what to do"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_whole_numbers_stored_as_float_are_ids(tmp_path, dtype):
    labels = np.array([[0, 7], [2000, 2000]])
    tifffile.imwrite(tmp_path / "a.tif", labels.astype(dtype))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), labels)


@pytest.mark.parametrize(("axes", "shape"), [("ZYX", (3, 4, 5)), ("TZYX", (2, 3, 4, 5)), ("CYX", (2, 1, 5))])
def test_equal_planes_are_one_label_image_others_are_refused(tmp_path, axes, shape):
    labels = np.broadcast_to(np.arange(np.prod(shape[-2:]), dtype=np.uint16).reshape(shape[-2:]), shape).copy()
    tifffile.imwrite(tmp_path / "a.ome.tif", labels, metadata={"axes": axes}, photometric="minisblack")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.ome.tif"), labels[(0,) * (len(shape) - 2)])
    labels[(-1,) * len(shape)] = 99
    tifffile.imwrite(tmp_path / "a.ome.tif", labels, metadata={"axes": axes}, photometric="minisblack")
    assert "planes that differ" in refused(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.bmp", "a.npy", "a", "a.tif.gz"])
def test_a_lossy_or_foreign_format_is_refused_by_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert "cannot hold labels" in refused(tmp_path / name)


def test_a_tiff_with_jpeg_inside_is_refused(tmp_path):
    labels = np.kron(np.arange(1, 17, dtype=np.uint8).reshape(4, 4), np.ones((8, 8), np.uint8))
    tifffile.imwrite(tmp_path / "a.tif", labels, compression="jpeg", compressionargs={"level": 50})
    assert (tifffile.imread(tmp_path / "a.tif") != labels).any()  # upstream: the ids have changed
    assert "compressed as JPEG, which may change ids" in refused(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
@pytest.mark.parametrize("content", [b"", b"no picture", b"II*\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    other = {"a.tif": (b"\x89", b"\xff"), "a.png": (b"II", b"\xff")}[name]
    said = "by its first bytes, whatever its name says" if content.startswith(other) else "cannot be read"
    assert said in refused(tmp_path / name)


def test_a_jpeg_by_another_name_is_refused(tmp_path):
    for name in ("a.png", "a.tif"):
        Image.new("L", (8, 8)).save(tmp_path / name, format="JPEG")
        assert "is a JPEG by its first bytes" in refused(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
    assert "no label image at" in refused(tmp_path / "a.tif")
    (tmp_path / "b.tif").mkdir()
    assert "no label image at" in refused(tmp_path / "b.tif")


def test_a_truncated_png_is_refused_where_cv2_gives_none(tmp_path, capfd):
    import cv2

    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 60_000, (40, 50)).astype(np.uint16)).save(whole)
    data, path = whole.read_bytes(), tmp_path / "a.png"
    for size in range(0, len(data) - 12, 97):
        path.write_bytes(data[:size])
        assert "cannot be read" in refused(path)
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is None  # upstream
    capfd.readouterr()


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_truncated_tiff_is_refused(tmp_path, compression):
    whole = tmp_path / "whole.tif"
    labels = np.random.default_rng(0).integers(0, 60_000, (40, 50)).astype(np.uint16)
    tifffile.imwrite(whole, labels, compression=compression, metadata=None)
    data, path = whole.read_bytes(), tmp_path / "a.tif"
    for size in range(0, len(data) - 1, 97):
        path.write_bytes(data[:size])
        refused(path)


def test_a_header_that_claims_a_giant_is_refused_before_it_is_read(tmp_path):
    path = write_labels(tmp_path / "a.tif", np.ones((4, 4), int))
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages[0].tags[name].overwrite(65_535)
    assert "claims to be (65535, 65535) px" in refused(path)
    ihdr = b"IHDR" + (65_535).to_bytes(4, "big") * 2 + bytes([16, 0, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + ihdr + zlib.crc32(ihdr).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    assert "cannot be read" in refused(tmp_path / "a.png")


def test_a_chain_of_pages_that_bites_its_tail_is_no_endless_loop(tmp_path, caplog):
    path = write_labels(tmp_path / "a.tif", picture("1122 1122 3344 3344"))
    data = bytearray(path.read_bytes())
    tags = int.from_bytes(data[8:10], "little")
    for place in (8, 28):  # the next page is this one, or begins amid its tags and leads back
        data[10 + 12 * tags : 14 + 12 * tags] = place.to_bytes(4, "little")
        path.write_bytes(data)
        with caplog.at_level("CRITICAL", "tifffile"):
            np.testing.assert_array_equal(read_labels(path), picture("1122 1122 3344 3344"))


def test_a_picture_without_pixels_is_refused(tmp_path):
    path = write_labels(tmp_path / "a.tif", np.ones((4, 4), int))
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["ImageWidth"].overwrite(0)
    assert "(4, 0)" in refused(path)


def test_a_header_that_claims_more_than_its_bytes_can_hold_is_refused(tmp_path):
    path = write_labels(tmp_path / "a.tif", np.ones((4, 4), int))
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages[0].tags[name].overwrite(6_000)
    assert f"claims to be (6000, 6000) px in {path.stat().st_size} bytes" in refused(path)
    empty = write_labels(tmp_path / "b.tif", np.zeros((6_000, 6_000), int))
    assert not read_labels(empty).any()


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, name, caplog):
    caplog.set_level("CRITICAL", "tifffile")
    labels, path = picture("1122 1122 3344 3344"), tmp_path / name
    if name == "a.tif":
        write_labels(path, labels)
    else:
        Image.fromarray(labels.astype(np.uint16)).save(path)
    data, rng, outcomes = path.read_bytes(), np.random.default_rng(0), {"read": 0, "refused": 0}
    for _ in range(300):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)).tolist():
            changed[place] = int(rng.integers(0, 256))
        path.write_bytes(changed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read_labels(path)
        except UserError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            assert found.ndim == 2 and found.dtype == np.int32
    assert min(outcomes.values()) > 10, outcomes
