"""Label images: what is written comes back, what is no label image is refused with its name, cleaning does what it says."""

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_cases import picture, refused
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
        (np.array([[0, -2]]), "integer >= -1"),
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
