"""TIFF as its writer meant it: files of a set, tags that change what values mean, pages that nothing accounts for."""

import math
import struct

import numpy as np
import pytest
import tifffile

from cellkit.errors import UserError
from cellkit.formats.label_images import read_labels
from cellkit.microscope.open import inspect_file, open_file

PIXELS = np.arange(1, 1281, dtype=np.uint16).reshape(32, 40)
LABELS = np.zeros((32, 40), np.uint8)
LABELS[4:8, 4:8], LABELS[10:14, 20:30] = 1, 3
NAMES = [f"urn:uuid:0000000{k}-0000-0000-0000-000000000000" for k in range(3)]


def first_values(path) -> list[tuple[str, int]]:
    """Name and first pixel of every scene."""
    with open_file(path) as opened:
        return [(s.name, int(opened.plane(k, 0, 0, 0)[0, 0])) for k, s in enumerate(opened.info.series)]


def write_pages(path, description, pages, packed=None, **how):
    with tifffile.TiffWriter(path, **how) as file:
        for k, page in enumerate(pages):
            told = description if k == 0 else None
            file.write(
                page, metadata=None, contiguous=False, description=told, compression=packed, photometric="minisblack"
            )
    return path


# ---- files of a set ------------------------------------------------------------------------------------------------
def ome(own: str | None, *images: str) -> str:
    own = f' UUID="{own}"' if own else ""
    return f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{own}>{"".join(images)}</OME>'


def position(k: int, *planes: tuple[int, int], axis: str = "Z") -> str:
    """An OME image whose planes lie at (file, page)."""
    sizes = {"C": 1, "Z": 1, "T": 1} | {axis: len(planes)}
    data = "".join(
        f'<TiffData IFD="{page}" First{axis}="{i}" PlaneCount="1">'
        f'<UUID FileName="p{file}.ome.tif">{NAMES[file]}</UUID></TiffData>'
        for i, (file, page) in enumerate(planes)
    )
    size = " ".join(f'Size{name}="{n}"' for name, n in sizes.items())
    return (
        f'<Image ID="Image:{k}" Name="pos{k}"><Pixels ID="Pixels:{k}" DimensionOrder="XYCZT" Type="uint16" SizeX="40" '
        f'SizeY="32" {size}>{data}</Pixels></Image>'
    )


def write_set(folder, *images, files=2, pages=1, packed=None, own=NAMES):
    for k in range(files):
        made = [np.full((32, 40), 1000 * (k + 1) + page, np.uint16) for page in range(pages)]
        write_pages(folder / f"p{k}.ome.tif", ome(own[k], *images), made, packed)
    return [folder / f"p{k}.ome.tif" for k in range(files)]


@pytest.mark.parametrize("packed", [None, "zlib"])
@pytest.mark.parametrize("own", [NAMES, [None] * 3])
def test_each_file_of_a_set_gives_its_own_positions_once(tmp_path, packed, own):
    images = [position(0, (0, 0)), position(1, (0, 1)), position(2, (1, 1), (1, 0))]
    a, b = write_set(tmp_path, *images, pages=2, packed=packed, own=own)
    assert first_values(a) == [("pos0", 1000), ("pos1", 1001)]
    assert first_values(b) == [("pos2", 2001)]
    assert "other images of it lie in p1.ome.tif" in inspect_file(a).notes[0] and not inspect_file(a).left_out
    b.unlink()
    assert first_values(a) == [("pos0", 1000), ("pos1", 1001)]
    assert "not beside it: p1.ome.tif" in inspect_file(a).notes[0]


def test_a_renamed_file_is_known_by_its_uuid(tmp_path):
    a, b = write_set(tmp_path, position(0, (0, 0)), position(1, (1, 0)))
    a.rename(tmp_path / "x")
    b.rename(a)
    (tmp_path / "x").rename(b)
    assert (first_values(a), first_values(b)) == ([("pos1", 2000)], [("pos0", 1000)])


@pytest.mark.parametrize("axis", ["Z", "C", "T"])
def test_an_image_spread_over_files_is_refused_by_name(tmp_path, axis):
    for path in write_set(tmp_path, position(0, (0, 0), (1, 0), axis=axis)):
        for read in (inspect_file, read_labels):
            with pytest.raises(UserError, match=r"one of several files.*'pos0' is spread over p0.ome.tif, p1.ome.tif"):
                read(path)


def test_a_file_that_describes_others_only_is_refused(tmp_path):
    (path,) = write_set(tmp_path, position(1, (1, 0)), files=1)
    with pytest.raises(UserError, match="of other files only: p1.ome.tif"):
        inspect_file(path)


def test_planes_that_share_a_page_are_refused(tmp_path):
    (path,) = write_set(tmp_path, position(0, (0, 0)), position(1, (0, 0)), files=1)
    with pytest.raises(UserError, match="2 planes the pixels of 1 pages"):
        inspect_file(path)


@pytest.mark.parametrize("master", ["a.companion.ome", "p0.ome.tif"])
def test_a_file_described_elsewhere_is_read_by_what_lies_beside_it(tmp_path, master):
    images = [position(0, (0, 0)), position(1, (1, 0))]
    a, b = write_set(tmp_path, *images)
    uuid = NAMES[0] if master == "p0.ome.tif" else "urn:uuid:c"
    pointer = ome(NAMES[1], f'<BinaryOnly MetadataFile="{master}" UUID="{uuid}"/>')
    write_pages(b, pointer, [np.full((32, 40), 2000, np.uint16)])
    if master != a.name:
        (tmp_path / master).write_text(ome(uuid, *images))
    assert first_values(b) == [("pos1", 2000)]
    (tmp_path / master).write_text(ome("urn:uuid:other", *images))
    with pytest.raises(UserError, match=r"describes another one|cannot be read beside it"):
        inspect_file(b)
    (tmp_path / master).unlink()
    with pytest.raises(UserError, match=f"part of an OME data set that {master} describes"):
        inspect_file(b)


# ---- tags that change what values mean -----------------------------------------------------------------------------
def test_white_is_zero_is_what_its_writer_means_by_it(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="miniswhite", description="ImageJ=1.54f\n", metadata=None)
    with open_file(path) as opened:  # Fiji's inverted look-up table: the values stay
        np.testing.assert_array_equal(opened.plane(0, 0, 0, 0), PIXELS)
    np.testing.assert_array_equal(read_labels(path), PIXELS)
    mask = LABELS > 0
    tifffile.imwrite(path, ~mask, photometric="miniswhite", metadata=None, software="ImageMagick 7.1")
    np.testing.assert_array_equal(read_labels(path), mask)
    tifffile.imwrite(path, mask)  # tifffile tags any bool so and stores it as it is
    np.testing.assert_array_equal(read_labels(path), mask)
    with open_file(path) as opened:
        np.testing.assert_array_equal(opened.plane(0, 0, 0, 0), mask)
    tifffile.imwrite(path, mask, metadata=None, software=False)
    for read in (inspect_file, read_labels):
        with pytest.raises(UserError, match="no name of its writer"):
            read(path)
    tifffile.imwrite(path, LABELS, photometric="miniswhite", metadata=None, software="other")
    with pytest.raises(UserError, match="8-bit ids as white-is-zero"):
        read_labels(path)


@pytest.mark.parametrize("way", range(2, 9))
def test_a_tiff_that_is_to_be_shown_turned_is_refused(tmp_path, way):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, extratags=[(274, "H", 1, way, True)], metadata=None)
    for read in (inspect_file, read_labels):
        with pytest.raises(UserError, match=f"orientation {way}"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize(
    ("tag", "value", "told"),
    [(274, 3, "orientation 3"), (262, 0, "photometric interpretation 0"), (259, 8, "compression 8")],
)
def test_a_later_page_that_is_turned_or_stored_otherwise_is_refused(tmp_path, tag, value, told, described):
    path = tmp_path / "a.tif"
    image = '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="40" SizeY="32" '
    text = ome(None, f'{image}SizeZ="4" SizeC="1" SizeT="1"><TiffData/></Pixels></Image>') if described else None
    how = {"metadata": None, "contiguous": False, "photometric": "minisblack", "extratags": [(274, "H", 1, 1, True)]}
    with tifffile.TiffWriter(path) as file:
        for plane in range(4):
            file.write(PIXELS, description=text if plane == 0 else None, **how)
    axes = None if described else "ZYX"
    assert inspect_file(path, axes).shape == (4, 32, 40)
    with tifffile.TiffFile(path) as file:
        place = file.pages[2].aspage().tags[tag].valueoffset
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(struct.pack("<H", value))
    with pytest.raises(UserError, match=f"page 2 of a.tif has the {told}" if described or tag == 274 else "a.tif"):
        inspect_file(path, axes)


def raw_tiff(path, pixels, bits, photometric, order=1):
    """A TIFF of `bits` per pixel, most significant first, or least where the fill order is 2."""
    rows = np.packbits(((pixels[..., None] >> np.arange(bits)[::-1]) & 1).reshape(len(pixels), -1), axis=1)
    data = (np.packbits(np.unpackbits(rows, bitorder="little")) if order == 2 else rows).tobytes()
    height, width = pixels.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (266, 3, order),
            (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    end = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + end)
    return path


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_ids_of_few_bits_are_the_stored_numbers(tmp_path, bits, order):
    stored = np.minimum(LABELS, 2**bits - 1)
    np.testing.assert_array_equal(read_labels(raw_tiff(tmp_path / "a.tif", stored, bits, 1, order)), stored)


def test_white_is_zero_of_four_bits_is_inverted_within_them(tmp_path):
    with open_file(raw_tiff(tmp_path / "a.tif", LABELS, 4, 0)) as opened:
        np.testing.assert_array_equal(opened.plane(0, 0, 0, 0), 15 - LABELS)


def test_luminance_and_colour_difference_are_not_taken_for_red_green_blue(tmp_path):
    from PIL import Image

    Image.new("YCbCr", (40, 32), (10, 20, 30)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="photometric interpretation 6"):
        inspect_file(tmp_path / "a.tif")


# ---- pages that nothing accounts for -------------------------------------------------------------------------------
@pytest.mark.parametrize("packed", [None, "zlib"])
@pytest.mark.parametrize("told", ["images=3\nslices=3\n", "images=6\nslices=3\n", "slices=1\nframes=2\n"])
def test_an_imagej_stack_with_more_planes_than_it_describes_is_refused(tmp_path, told, packed):
    pages = [PIXELS + k for k in range(6)]
    path = write_pages(tmp_path / "a.tif", f"ImageJ=1.54f\n{told}", pages, packed, byteorder=">")
    for read in (inspect_file, read_labels):
        with pytest.raises(UserError, match=r"describes \d planes and holds 6"):
            read(path)


def test_an_imagej_stack_whose_planes_follow_the_first_page_is_read(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([PIXELS, PIXELS + 1]), imagej=True, metadata={"axes": "ZYX"})
    assert inspect_file(tmp_path / "a.tif").shape == (2, 32, 40)


@pytest.mark.parametrize("packed", [None, "zlib"])
def test_pages_in_no_image_of_the_metadata_are_named(tmp_path, packed):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.stack([PIXELS] * 2), metadata={"axes": "ZYX"}, photometric="minisblack")
    with tifffile.TiffFile(path) as tif:
        told = tif.pages[0].description
    write_pages(path, told, [PIXELS + k for k in range(4)], packed)
    info = inspect_file(path)
    assert info.shape == (2, 32, 40) and "2 of its 4 pages are in no image that it describes: 2, 3" in info.left_out[0]
    with pytest.raises(UserError, match="one label image was wanted"):
        read_labels(path)


def test_smaller_copies_are_no_images_and_larger_ones_are(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for page in (PIXELS, PIXELS[::2, ::2], np.vstack([PIXELS, PIXELS])):
            file.write(page, subfiletype=int(page is not PIXELS), metadata=None)
    assert [s.shape for s in inspect_file(path).series] == [(32, 40), (64, 40)]
    with tifffile.TiffWriter(path) as file:
        file.write(PIXELS[::2, ::2], subifds=1, metadata=None)
        file.write(PIXELS, metadata=None)
    assert "a SubIFD of 32 x 40 px" in inspect_file(path).left_out[0]


@pytest.mark.parametrize(
    ("page", "edit", "said"),
    [
        (np.full((32, 40), 255, np.uint8), {254: 4}, "a page of 32 x 40 px is a transparency mask"),
        (PIXELS[::8, ::8], {}, "a page of 4 x 5 px is a preview of the first by its size"),
        (np.ones((32, 40), np.float32), {339: 6}, "is of no type that is known (32 bits, sample format 6)"),
        (np.ones((9, 9), np.uint8), {256: 0}, "a page of 9 x 0 px holds no pixel"),
    ],
)
def test_a_page_that_is_no_image_is_named(tmp_path, page, edit, said):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(PIXELS, metadata=None)
        file.write(page, subfiletype=2, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages[1].tags
        for code, value in edit.items():
            tags[code].overwrite(value)
    info = inspect_file(path)
    assert len(info.series) == 1 and info.shape == (32, 40) and said in " ".join(info.left_out)
    with pytest.raises(UserError, match="one label image was wanted"):
        read_labels(path)


def test_a_slides_thumbnail_and_label_are_named(tmp_path):
    path, how = tmp_path / "a.tif", {"photometric": "rgb", "metadata": None}
    slide = np.zeros((64, 96, 3), np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(slide, tile=(16, 16), description="Aperio Image Library v1|AppMag = 20", **how)
        file.write(slide[::2, ::2], description="Aperio", **how)
        file.write(slide[:30, :30], description="label 30x30", subfiletype=1, **how)
        file.write(slide[:20, :30], description="macro 20x30", subfiletype=9, **how)
        file.write(slide[:10, :30], description="of nobody's", **how)
    info = inspect_file(path)
    assert info.left_out[0].endswith("1 of its 5 pages are no images: 4")
    assert len(info.series) == 1
    assert [text.split("slide's ")[1].split()[0] for text in info.left_out[1:]] == ["thumbnail", "label", "macro"]


def test_a_label_tiff_of_several_images_is_refused(tmp_path):
    write_pages(tmp_path / "a.tif", None, [LABELS, LABELS[::2]])
    with pytest.raises(UserError, match="holds 2 images"):
        read_labels(tmp_path / "a.tif")


# ---- sizes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("unit", "resolution", "um"),
    [
        (3, (20000, 20000), 0.5),
        (3, (236.2, 236.2), None),
        (3, (20000, 10000), None),
        (2, (600, 600), None),
        (3, (0, 0), None),
    ],
)
def test_a_resolution_is_a_pixel_size_only_where_it_is_a_microscopes(tmp_path, unit, resolution, um):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, resolution=resolution, resolutionunit=unit, metadata=None)
    found = inspect_file(tmp_path / "a.tif").um_per_px
    assert math.isnan(found) if um is None else found == um


@pytest.mark.parametrize(
    ("unit", "resolution", "um"),
    [("nm", (0.01, 0.01), 0.1), ("inch", (300, 300), None), ("cm", (100, 100), None), ("micron", (4, 2), None)],
)
def test_imagej_takes_over_what_printers_were_told_and_we_do_not(tmp_path, unit, resolution, um):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, imagej=True, resolution=resolution, metadata={"unit": unit})
    found = inspect_file(tmp_path / "a.tif").um_per_px
    assert math.isnan(found) if um is None else found == pytest.approx(um)


def test_numbers_that_are_none_are_said_with_the_scene(tmp_path):
    pixels = (
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="40" SizeY="32" SizeC="1" SizeZ="1" SizeT="1"'
    )
    channel = '<Channel ID="Channel:0:0" SamplesPerPixel="1" EmissionWavelength="Far Red" ExcitationWavelength="640"/>'
    told = ome(None, f'<Image ID="Image:0">{pixels} PhysicalSizeX="0,5">{channel}<TiffData/></Pixels></Image>')
    write_pages(tmp_path / "a.ome.tif", told, [PIXELS])
    series = inspect_file(tmp_path / "a.ome.tif").first
    assert math.isnan(series.um_per_px) and series.channels[0].wavelength_nm == 640
    assert len(series.notes) == 2 and "'0,5'" in series.notes[1] and "'Far Red'" in series.notes[0]
