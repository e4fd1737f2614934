"""Label images: what is written comes back, what is no label image is refused with its name, cleaning does what it says."""

import warnings
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage

from cellkit.cells.labels import check_labels, clean_labels, relabel, smallest_dtype
from cellkit.errors import UserError
from cellkit.formats.label_images import read_labels, write_labels

SIDES = st.integers(1, 12)
EIGHT = np.ones((3, 3))


@st.composite
def label_images(draw, largest=6):
    shape = draw(st.tuples(SIDES, SIDES))
    return draw(hnp.arrays(np.int32, shape, elements=st.integers(0, largest)))


def picture(text):
    """Read a picture of digits, one row a line; anything else is background."""
    return np.array([[int(c) if c.isdigit() else 0 for c in line] for line in text.split()])


def refused(path):
    with pytest.raises(UserError) as error:
        read_labels(path)
    assert str(path) in str(error.value), "the file is named"
    return str(error.value)


# ---- write and read ------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(label_images(2**31 - 1))
def test_what_is_written_comes_back(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("labels") / "a.tif"
    assert write_labels(path, labels) == path
    back = read_labels(path)
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, labels)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(0, "uint16"), (300, "uint16"), (65_535, "uint16"), (65_536, "uint32"), (70_000, "uint32"), (2**31 - 1, "uint32")],
)
def test_the_type_never_wraps(tmp_path, largest, dtype):
    labels = np.array([[0, largest], [largest, 1]], np.int64)
    assert smallest_dtype(largest) == dtype
    path = write_labels(tmp_path / "a.tif", labels)
    assert tifffile.imread(path).dtype == dtype
    np.testing.assert_array_equal(read_labels(path), labels)


def test_seventy_thousand_cells(tmp_path):
    labels = np.arange(1, 280 * 250 + 1).reshape(280, 250)
    np.testing.assert_array_equal(read_labels(write_labels(tmp_path / "a.tif", labels)), labels)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)])
def test_an_image_of_one_row_or_column_stays_one(tmp_path, shape):
    labels = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(read_labels(write_labels(tmp_path / "a.tiff", labels)), labels)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros((2, 2)), "float64"),
        (np.zeros((2, 2, 3), int), r"\(2, 2, 3\)"),
        (np.array([[0, -1]]), "integer >= 0"),
        (np.array([[2**31]]), "found 2147483648; relabel first"),
        (np.array([[2**32 + 5]]), "found 4294967301; relabel first"),  # as uint32 it would be cell 5
    ],
)
def test_what_cannot_be_written_leaves_the_previous_file(tmp_path, labels, reason):
    path = write_labels(tmp_path / "a.tif", np.ones((2, 2), int))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=reason):
        write_labels(path, labels)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a"])
def test_labels_are_written_as_tiff_only(tmp_path, name):
    with pytest.raises(UserError, match="end the file name with .tif"):
        write_labels(tmp_path / name, np.ones((2, 2), int))
    assert not list(tmp_path.iterdir())


# ---- read what others wrote ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, bool]
)
def test_tiff_of_any_integer_type(tmp_path, dtype):
    labels = picture(".1. .12").astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", labels, photometric="minisblack")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), labels)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "lzma", "zstd"])
def test_tiff_of_any_lossless_compression(tmp_path, compression):
    labels = np.arange(600, dtype=np.uint16).reshape(20, 30)
    tifffile.imwrite(tmp_path / "a.tif", labels, compression=compression)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), labels)


def test_tiff_with_axes_of_length_one(tmp_path):
    labels = picture("12. .3.").astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", labels[None, None], imagej=True)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), labels)


@pytest.mark.parametrize(("dtype", "mode"), [(np.uint8, "L"), (np.uint16, "I;16")])
def test_png_keeps_its_values(tmp_path, dtype, mode):
    labels = np.array([[0, np.iinfo(dtype).max], [7, 40]], dtype)
    Image.fromarray(labels).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), labels)


def test_bilevel_png_is_one_cell(tmp_path):
    Image.fromarray(picture(".1 11").astype(bool)).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png").tolist() == [[0, 1], [1, 1]]


def palette_png(path, indices):
    image = Image.frombytes("P", indices.shape[::-1], indices.astype(np.uint8).tobytes())
    image.putpalette([value for k in range(256) for value in (k, 255 - k, 7 * k % 256)])
    image.save(path)


def test_palette_png_gives_indices_where_others_give_colours(tmp_path):
    import cv2
    from skimage.io import imread

    indices = picture("0123 9950")
    palette_png(tmp_path / "a.png", indices)
    assert imread(tmp_path / "a.png").shape[2] in (3, 4)  # upstream
    assert cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED).ndim == 3  # upstream
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), indices)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_border_not_to_be_judged_is_no_cell(tmp_path, dtype):
    mark = np.iinfo(dtype).max
    labels = picture("00000000 01100220 01100220 00000000").astype(dtype)
    ringed = np.where((labels == 0) & (np.indices(labels.shape)[1] % 4 != 3), mark, labels).astype(dtype)
    for name in ("a.png", "a.tif"):
        Image.fromarray(ringed).save(tmp_path / name) if name == "a.png" else tifffile.imwrite(tmp_path / name, ringed)
        assert f"has {mark} around all its other ids" in refused(tmp_path / name)
    lone = labels.copy()
    lone[0, 0], lone[3, 0] = mark, mark  # a cell of two pieces that touches one of the others only
    tifffile.imwrite(tmp_path / "b.tif", lone)
    np.testing.assert_array_equal(read_labels(tmp_path / "b.tif"), lone)


def test_a_16_bit_label_is_not_clipped_to_8_bit(tmp_path):
    labels = np.array([[0, 300, 40_000]], np.uint16)
    Image.fromarray(labels).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert np.array(image.convert("L")).max() == 255  # upstream
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), labels)


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
        (np.array([[0.0, -1.0]], np.float32), "marks 1 px with -1, which means not annotated"),
        (np.array([[0, -1, -1]], np.int16), "marks 2 px with -1, which means not annotated"),
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


# ---- renumber ------------------------------------------------------------------------------------------------------
@settings(max_examples=100, deadline=None)
@given(label_images(2**31 - 1))
def test_relabel_is_dense_and_can_be_undone(labels):
    dense, old = relabel(labels)
    assert dense.dtype == np.int32
    assert np.unique(dense[dense > 0]).tolist() == list(range(1, len(old) + 1))
    assert np.all(np.diff(old) > 0)
    np.testing.assert_array_equal(np.r_[0, old][dense], labels)


def test_relabel_without_background_and_without_cells():
    dense, old = relabel(np.array([[5, 9]]))
    assert (dense.tolist(), old.tolist()) == ([[1, 2]], [5, 9])
    dense, old = relabel(np.zeros((2, 3), int))
    assert (dense.shape, len(old)) == ((2, 3), 0)


# ---- check ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("..... .....", {}),
        ("..... .111. .111. .....", {"cells": 1}),
        ("..... .1... ..... ...1. .....", {"cells": 1, "pieces": 1, "tiny": 1}),
        ("..... .1... ..1.. .....", {"cells": 1, "tiny": 1}),  # a corner holds it together
        (".....  .111. .1.1. .111. .....", {"cells": 1, "holes": 1}),
        ("..... .1122 .1122 .....", {"cells": 2, "touching": 2, "border": 1, "tiny": 2}),
        ("...... .11... .11... ...22. ...22. ......", {"cells": 2, "touching": 2, "tiny": 2}),
        ("....... .11.22. .11.22. .......", {"cells": 2, "tiny": 2}),
        ("33333", {"cells": 1, "border": 1}),
        ("9.7.5", {"cells": 3, "border": 3, "tiny": 3}),
    ],
)
def test_faults_are_counted(text, expected):
    nothing = dict.fromkeys(("cells", "tiny", "pieces", "holes", "touching", "border"), 0)
    assert check_labels(picture(text), tiny_px=5) == nothing | expected


# ---- clean ---------------------------------------------------------------------------------------------------------


def test_cleaning_pieces():
    labels = picture("11.1 11.. .2.2 2..2")
    np.testing.assert_array_equal(clean_labels(labels, pieces="keep"), labels)
    np.testing.assert_array_equal(clean_labels(labels, pieces="largest"), picture("11.. 11.. .2.. 2..."))
    np.testing.assert_array_equal(clean_labels(labels, pieces="split"), picture("11.2 11.. .3.4 3..4"))
    with pytest.raises(ValueError, match="pieces is 'keep', 'largest' or 'split', not 'all'"):
        clean_labels(labels, pieces="all")


@settings(max_examples=60, deadline=None)
@given(label_images(), st.sampled_from(["keep", "largest", "split"]))
def test_cleaning_keeps_its_promises(labels, pieces):
    clean = clean_labels(labels, pieces)
    assert clean.shape == labels.shape and clean.dtype == np.int32
    ids = np.unique(clean[clean > 0])
    assert ids.tolist() == list(range(1, len(ids) + 1))
    for label in ids.tolist():
        mask = clean == label
        if pieces != "keep":
            assert ndimage.label(mask, EIGHT)[1] == 1
        assert len(np.unique(labels[mask])) == 1
    assert ((clean > 0) <= (labels > 0)).all()
    if pieces != "largest":
        assert ((clean > 0) >= (labels > 0)).all()


# ---- real ----------------------------------------------------------------------------------------------------------
@pytest.mark.realdata
def test_real_label_images(tmp_path, data_folder):
    paths = sorted((data_folder / "dsb2018" / "labels").glob("*.png"))[::25]
    assert len(paths) > 20
    for path in paths:
        labels = read_labels(path)
        np.testing.assert_array_equal(read_labels(write_labels(tmp_path / "a.tif", labels)), labels)
        assert clean_labels(labels).max() == check_labels(labels)["cells"] == len(np.unique(labels)) - 1


# ---- few bits, orientation, frames ---------------------------------------------------------------------------------
def png_of_bits(path, labels, bits):
    import struct
    import zlib

    packed = np.packbits(
        ((labels[..., None] >> np.arange(bits)[::-1]) & 1).reshape(len(labels), -1).astype(np.uint8), axis=1
    )
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    head = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_ids_of_a_png_are_the_numbers_it_stores(tmp_path, bits):
    stored = np.minimum(picture("0001 0022 0333 4444"), 2**bits - 1)
    if bits < 16:
        png_of_bits(tmp_path / "a.png", stored, bits)
    else:
        Image.fromarray(stored.astype(np.uint16)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), stored)


def test_a_label_png_is_turned_as_a_picture_is(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(picture("1100 0000 0022").astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), picture("001 001 200 200"))


def test_a_label_png_of_several_frames_is_refused(tmp_path):
    frames = [Image.fromarray(picture("1100 0022").astype(np.uint8) + k) for k in range(2)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert "of 2 frames" in refused(tmp_path / "a.png")
