"""Files as they come: what a header says, damaged files refused, every layout of axes read as what it is."""

import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellkit.errors import UserError
from cellkit.microscope.open import inspect_file, open_file

RAW = Path(os.environ.get("CELLKIT_DATA") or Path(__file__).parents[3] / "shared" / "data") / "raw_formats"
STACK = np.random.default_rng(0).integers(0, 4000, (3, 2, 20, 30), dtype=np.uint16)  # Z, C, Y, X
OME = {"axes": "ZCYX", "Channel": {"Name": ["DAPI", "actin"], "EmissionWavelength": [461, 520],
       "EmissionWavelengthUnit": ["nm", "nm"]}, "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm",
       "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}  # fmt: skip


def plane(path, scene=0, time=0, z=0, channel=0, axes=None):
    with open_file(path, axes) as opened:
        return opened.plane(scene, time, z, channel)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_an_ome_tiff_says_what_it_holds_and_gives_its_planes(tmp_path, compression):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK, metadata=OME, photometric="minisblack", compression=compression)
    info = inspect_file(path)
    assert (info.reader, info.axes, info.shape, info.dtype) == ("ome-tiff", "ZCYX", (3, 2, 20, 30), "uint16")
    assert info.channels == ("DAPI", "actin") and info.um_per_px == 0.5
    assert info.to_json()["wavelengths_nm"] == [461.0, 520.0]
    for z in range(3):
        for c in range(2):
            np.testing.assert_array_equal(plane(path, z=z, channel=c), STACK[z, c], strict=True)


def test_an_imagej_tiff_gives_channel_names_and_pixel_size(tmp_path):
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZCYX", "unit": "um", "Labels": ["n", "c"] * 3}
    tifffile.imwrite(path, STACK, imagej=True, metadata=metadata, resolution=(4, 4))
    info = inspect_file(path)
    assert (info.reader, info.channels, info.um_per_px) == ("imagej-tiff", ("n", "c"), 0.25)
    np.testing.assert_array_equal(plane(path, z=2, channel=1), STACK[2, 1], strict=True)


def test_scenes_and_times_become_frames_with_telling_suffixes(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(STACK[:, 0], metadata={"axes": "TYX"}, photometric="minisblack")
        writer.write(STACK[0], metadata={"axes": "CYX"}, photometric="minisblack")
    frames = list(inspect_file(path).frames())
    assert frames == [(0, 0, "_s0_t0"), (0, 1, "_s0_t1"), (0, 2, "_s0_t2"), (1, 0, "_s1")]
    np.testing.assert_array_equal(plane(path, scene=0, time=2), STACK[2, 0])
    np.testing.assert_array_equal(plane(path, scene=1, channel=1), STACK[0, 1])


@pytest.mark.parametrize("axes", ["CYX", "YXC", "YCX", "XYC"])  # fault 12: also where the last axis is 3 wide
def test_stated_axes_are_followed_wherever_they_lie(tmp_path, axes):
    channels = STACK[:, 0]  # three planes of 20 x 30
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, np.ascontiguousarray(channels.transpose(["CYX".index(a) for a in axes])), photometric="minisblack"
    )
    with pytest.raises(UserError, match=r"axes Q\w+ \("):
        inspect_file(path)
    for c in range(3):
        np.testing.assert_array_equal(plane(path, channel=c, axes=axes), channels[c], strict=True)


def test_separate_pages_are_not_guessed_to_be_time_or_depth(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for page in STACK[:, 0]:
            writer.write(page, metadata=None, contiguous=False)
    with pytest.raises(UserError, match=r"axes IYX \(3, 20, 30\).*\n.*e.g. axes: TYX"):
        inspect_file(path)
    assert len(list(inspect_file(path, "TYX").frames())) == 3
    with pytest.raises(UserError, match="one letter for each of the 3 axes"):
        inspect_file(path, "YX")


def test_big_endian_planar_white_is_zero_and_palette_tiffs_mean_what_they_say(tmp_path):
    grey = STACK[0, 0]
    tifffile.imwrite(tmp_path / "big.tif", grey, byteorder=">", photometric="minisblack")
    np.testing.assert_array_equal(plane(tmp_path / "big.tif"), grey, strict=True)
    tifffile.imwrite(tmp_path / "white.tif", grey, photometric="miniswhite")
    np.testing.assert_array_equal(plane(tmp_path / "white.tif"), 65535 - grey, strict=True)
    colours = np.random.default_rng(1).integers(0, 65536, (3, 256), dtype=np.uint16)
    indices = (grey % 256).astype(np.uint8)
    tifffile.imwrite(tmp_path / "palette.tif", indices, photometric="palette", colormap=colours)
    assert inspect_file(tmp_path / "palette.tif").channels == ("red", "green", "blue")
    np.testing.assert_array_equal(plane(tmp_path / "palette.tif", channel=2), colours[2][indices])
    rgb = np.stack([indices, indices // 2, indices // 3])
    tifffile.imwrite(tmp_path / "planar.tif", rgb, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(plane(tmp_path / "planar.tif", channel=1), rgb[1])


# ---- faults --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["raw", "zlib", "imagej", "ome", "ome-zlib", "pages"])
@pytest.mark.parametrize("kept", [0.97, 0.6, 0.2, 0.02])
def test_a_tiff_cut_short_is_refused_and_never_becomes_fewer_planes(tmp_path, kind, kept):  # fault 1
    path = tmp_path / ("a.ome.tif" if kind.startswith("ome") else "a.tif")
    if kind == "pages":
        with tifffile.TiffWriter(path) as writer:
            for page in STACK.reshape(6, 20, 30):
                writer.write(page, metadata=None, contiguous=False)
    else:
        options = {"imagej": True} if kind == "imagej" else {"metadata": OME} if kind.startswith("ome") else {}
        compression = "zlib" if "zlib" in kind else None
        tifffile.imwrite(path, STACK, photometric="minisblack", compression=compression, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    read = lambda z, c: plane(path, z=z, channel=c, axes="ZCYX" if kind in ("raw", "zlib") else None)  # noqa: E731
    if kind == "imagej" and kept == 0.97:  # only what follows the pixels is gone, and ImageJ does not need it
        np.testing.assert_array_equal([[read(z, c) for c in range(2)] for z in range(3)], STACK)
        return
    with pytest.raises(UserError, match=path.name):
        [read(z, c) for z in range(3) for c in range(2)]


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("kept", [0.9, 0.3, 0.01])
def test_a_picture_cut_short_is_refused(tmp_path, name, kept):  # fault 2
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        plane(path)


def test_empty_files_and_files_of_another_kind_are_refused(tmp_path):  # fault 3
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "text.tif").write_text("not an image at all")
    (tmp_path / "text.png").write_text("not an image at all")
    for name, said in (("empty.tif", "empty"), ("text.tif", "cannot be read"), ("text.png", "cannot be read")):
        with pytest.raises(UserError, match=said):
            inspect_file(tmp_path / name)
    with pytest.raises(UserError, match="no file"):
        inspect_file(tmp_path / "none.tif")
    with pytest.raises(UserError, match="no image format"):
        inspect_file(tmp_path / "notes.txt")
    Image.new("L", (4, 4)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "gif.png")  # outside the list of formats, whatever it is called
    with pytest.raises(UserError, match="is a GIF by its first bytes"):
        inspect_file(tmp_path / "gif.png")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.tif",
            b"\x89PNG\r\n\x1a\n0000",
            "a.tif is a PNG by its first bytes, whatever its name says\nrename it to a.png",
        ),
        (
            "a.ome.tif",
            b"\xff\xd8\xff\xe0 a photo",
            "is a JPEG by its first bytes, .*\nrename it to a.ome.jpg",
        ),
        ("a.JPG", b"II*\0 a tiff", "is a TIFF by its first bytes, whatever its name says\nrename it to a.tif"),
        ("a.png", b"<!DOCTYPE html><html>", "is a web page by its first bytes"),
        ("a.tif", b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        ("a.nd2", b"MM\0* a tiff", "is a TIFF by its first bytes"),
        ("a.png", b"\x89PNG\r\n\x1a\n cut", "damaged or cut short"),
    ],
)
def test_a_file_that_is_another_than_it_is_called_is_told_what_it_is(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        inspect_file(tmp_path / name)


def test_what_is_said_of_a_damaged_file_names_no_address_of_memory(tmp_path):
    (tmp_path / "a.png").write_bytes(b"hello")
    with pytest.raises(UserError, match="a.png cannot be read as PNG or JPEG: cannot identify image file\n"):
        inspect_file(tmp_path / "a.png")


def test_a_cameras_jpeg_with_a_preview_is_its_first_picture_and_one_of_two_pictures_is_refused(tmp_path):
    first, small = Image.new("RGB", (32, 24), (200, 0, 90)), Image.new("RGB", (16, 12))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[small])
    info = inspect_file(tmp_path / "a.jpg")
    assert info.shape == (24, 32, 3) and "first of the 2 pictures" in info.series[0].notes[0]
    assert abs(int(plane(tmp_path / "a.jpg")[3, 3]) - 200) < 5
    first.save(tmp_path / "b.jpg", format="MPO", save_all=True, append_images=[first])
    with pytest.raises(UserError, match="of 2 frames"):
        inspect_file(tmp_path / "b.jpg")


def test_a_header_that_claims_too_much_is_refused_before_reading(tmp_path):  # faults 4 and 5
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8), metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tags = tif.pages[0].tags
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tags[name].overwrite(65535)
        tags["StripByteCounts"].overwrite(65535 * 65535)
    with pytest.raises(UserError, match="claims 65535 x 65535 px"):
        inspect_file(path)
    assert (tmp_path / "a.tif").stat().st_size < 1000
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    for side in (10_000, 20_000):
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        with pytest.raises(UserError, match="bomb.png: Image size"):
            inspect_file(tmp_path / "bomb.png")


@pytest.mark.parametrize("suffix", [".lsm", ".ims", ".oif", ".VSI"])
def test_formats_that_are_not_read_are_refused_by_name(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"which is not read\n.*OME-TIFF"):
        inspect_file(tmp_path / f"a{suffix}")


# ---- pictures ------------------------------------------------------------------------------------------------------
def test_16_bit_pngs_keep_their_16_bits(tmp_path):  # fault 7
    import imagecodecs

    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    (tmp_path / "rgb.png").write_bytes(imagecodecs.png_encode(values))
    (tmp_path / "grey.png").write_bytes(imagecodecs.png_encode(values[..., 0].copy()))
    assert inspect_file(tmp_path / "rgb.png").dtype == inspect_file(tmp_path / "grey.png").dtype == "uint16"
    np.testing.assert_array_equal(plane(tmp_path / "rgb.png", channel=1), values[..., 1])
    np.testing.assert_array_equal(plane(tmp_path / "grey.png"), values[..., 0])


def test_grey_colour_palette_and_alpha_are_told_apart(tmp_path):  # fault 10
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    values[..., 3] = 255
    Image.fromarray(values).save(tmp_path / "rgba.png")
    Image.fromarray(values[..., :3]).save(tmp_path / "rgb.png")
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(values[..., [0, 3]].copy()).save(tmp_path / "grey_alpha.png")
    few = Image.fromarray(values[..., :3]).quantize(16)
    few.save(tmp_path / "palette.png")
    for name, channels in (("rgba", 3), ("rgb", 3), ("grey", 1), ("grey_alpha", 1)):
        info = inspect_file(tmp_path / f"{name}.png")
        assert info.channels == (("red", "green", "blue") if channels == 3 else ("grey",))
        np.testing.assert_array_equal(plane(tmp_path / f"{name}.png"), values[..., 0])
    np.testing.assert_array_equal(plane(tmp_path / "palette.png", channel=2), np.asarray(few.convert("RGB"))[..., 2])
    values[3, 4, 3] = 0
    Image.fromarray(values).save(tmp_path / "hole.png")
    tifffile.imwrite(tmp_path / "hole.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    for name in ("hole.png", "hole.tif"):
        with pytest.raises(UserError, match="1 transparent pixels"):
            plane(tmp_path / name)


def test_reading_leaves_logging_and_pillow_as_they_were(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[0, 0])
    logger = logging.getLogger("tifffile")
    before = (list(logger.handlers), logger.propagate, Image.MAX_IMAGE_PIXELS)
    inspect_file(tmp_path / "a.tif")
    assert (list(logger.handlers), logger.propagate, Image.MAX_IMAGE_PIXELS) == before


# ---- real files ----------------------------------------------------------------------------------------------------
REAL = {
    "tiff/piximi_8b_2c_actin-nuclei.tif": ("CYX", (2, 450, 450), "uint8", ("", "")),
    "tiff/CH3_Fluorescence_8bit.tif": ("CYX", (3, 272, 275), "uint8", ("", "", "")),
    "tiff/5channel.tif": ("CYX", (5, 64, 64), "uint8", ("",) * 5),
    "tiff/hela-cells.tif": ("YXS", (512, 672, 3), "uint16", ("red", "green", "blue")),
    "tiff/NikonTIF.tif": ("YXS", (731, 805, 3), "uint8", ("red", "green", "blue")),
    "ometiff/ome-types_tiny.ome.tiff": ("CYX", (2, 6, 6), "uint8", ("", "")),
    "ometiff/FOV7_HV110_P0500510000.ome.tiff": ("YX", (512, 512), "uint8", ("",)),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_real_files_hold_what_their_list_says(name):
    info = inspect_file(RAW / name)
    assert (info.axes, info.shape, info.dtype, info.channels) == REAL[name]
    with open_file(RAW / name) as opened:
        assert opened.plane(0, 0, 0, len(info.channels) - 1).shape == (
            info.series[0].size("Y"),
            info.series[0].size("X"),
        )


@pytest.mark.realdata
def test_real_stacks_of_unknown_axes_are_refused_until_they_are_stated():
    for name in ("ebimage_nuclei_4frames", "ebimage_cells_4frames"):
        with pytest.raises(UserError, match=r"axes IYX \(4, 510, 510\)"):
            inspect_file(RAW / "tiff" / f"{name}.tif")
        assert len(list(inspect_file(RAW / "tiff" / f"{name}.tif", "TYX").frames())) == 4


@pytest.mark.realdata
def test_pictures_of_a_palette_and_of_deep_colours_keep_their_values():
    for name in ("CH3_Fluorescence_8bit", "piximi_8b_3c_composite_FluorescentCells", "5channel", "hela-cells"):
        stored = tifffile.imread(RAW / "tiff" / f"{name}.tif")
        stored = np.moveaxis(stored, -1, 0) if name == "hela-cells" else stored
        for channel, wanted in enumerate(stored):  # a palette of a channel says how to show it, not what was measured
            np.testing.assert_array_equal(plane(RAW / "tiff" / f"{name}.tif", channel=channel), wanted, strict=True)


def test_a_chain_of_pages_that_loops_back_is_refused_and_does_not_hang(tmp_path):
    path = tmp_path / "loop.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8))
    raw = bytearray(path.read_bytes())
    first = struct.unpack_from("<I", raw, 4)[0]
    entries = struct.unpack_from("<H", raw, first)[0]
    struct.pack_into("<I", raw, first + 2 + 12 * entries, first)  # the next page is this one
    path.write_bytes(raw)
    with pytest.raises(UserError, match="damaged|page"):
        inspect_file(path)


# ---- orientation, transparency -------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_is_turned_as_its_exif_says(tmp_path, suffix, way):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x112] = way
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8)).save(path, exif=exif)
    with Image.open(path) as picture:
        shown = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(plane(path), shown, strict=True)
    info = inspect_file(path)
    assert info.shape == shown.shape and bool(info.notes_of(0)) == (way > 1)


def test_an_orientation_that_only_some_programs_know_is_refused(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/></x:xmpmeta>'
    Image.new("L", (30, 20)).save(tmp_path / "a.jpg", xmp=xmp)
    with pytest.raises(UserError, match="orientation 6 in its XMP"):
        inspect_file(tmp_path / "a.jpg")


def test_a_colour_declared_transparent_is_transparency(tmp_path):  # tRNS, without an alpha channel
    values = np.arange(600, dtype=np.uint16).reshape(20, 30)
    for name, picture, clear in (
        ("grey", values.astype(np.uint8), 7),
        ("rgb", np.dstack([values % 251] * 3).astype(np.uint8), (7, 7, 7)),
        ("deep", values, 7),
    ):
        Image.fromarray(picture).save(tmp_path / f"{name}.png", transparency=clear)
        with pytest.raises(UserError, match="transparent pixels"):
            plane(tmp_path / f"{name}.png")
