"""ROI zips of ImageJ, there and back: no pixel lost, roifile agrees, and no file does harm."""

import io
import os
import random
import stat
import struct
import time
import zipfile

import numpy as np
import pytest
from exchange_cases import CLASSES, TWO, cells, pictures, records, refused, two  # noqa: F401
from hypothesis import given, settings
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.formats.any import read_side, write_folder
from cellkit.formats.label_images import read_labels
from cellkit.formats.roi import read_rois, write_rois
from cellkit.formats.seg import read_seg, write_seg


def crowded(shape=(520, 704), cells=1500):
    """A label image as full as LIVECell's."""
    labels = np.zeros(shape, np.int32)
    yy, xx = np.mgrid[-6:7, -7:8]
    disc = (yy / 6) ** 2 + (xx / 7) ** 2 <= 1
    places = [(y, x) for y in range(7, shape[0] - 7, 13) for x in range(8, shape[1] - 8, 14)]
    for k, (y, x) in enumerate(places[:cells], 1):
        labels[y - 6 : y + 7, x - 7 : x + 8][disc] = k
    return labels


# ---- ROI zips ------------------------------------------------------------------------------------------------------


def test_a_roi_zip_as_it_is_written(tmp_path):
    path = write_rois(tmp_path / "a_rois.zip", two(scores=[1, 0.25]), CLASSES)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["0001.roi", "0002.roi"]
        square, other = (ImagejRoi.frombytes(archive.read(name)) for name in archive.namelist())
    assert (square.roitype, square.name, square.group) == (ROI_TYPE.TRACED, "0001", 2)
    assert square.coordinates().tolist() == [[0, 0], [2, 0], [2, 2], [0, 2]]
    assert square.props == "cellkit.classes: HEK,N2a%2C%20%C3%A9\ncellkit.shape: 3,5\n"
    assert (other.group, other.props.splitlines()[-1]) == (1, "cellkit.score: 0.25")
    again = write_rois(tmp_path / "b_rois.zip", two(scores=[1, 0.25]), CLASSES)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(tmp_path.iterdir()) == [path, again]


@settings(max_examples=150, deadline=None)
@given(cells())
def test_rois_come_back_pixel_by_pixel(tmp_path_factory, found):
    path = write_rois(tmp_path_factory.mktemp("roi") / "a_rois.zip", found, CLASSES)
    rois = read_rois(path)
    assert rois.instances == found
    assert rois.classes == CLASSES
    assert read_rois(path, found.shape).instances == found


def test_a_ring_and_a_cell_of_two_pieces_are_composites(tmp_path):
    labels = np.array([[1, 1, 1, 0, 2], [1, 0, 1, 0, 0], [1, 1, 1, 0, 2]])
    found = Instances.from_labels(labels)
    path = write_rois(tmp_path / "a.zip", found)
    with zipfile.ZipFile(path) as archive:
        rois = [ImagejRoi.frombytes(archive.read(name)) for name in archive.namelist()]
    assert [roi.composite for roi in rois] == [True, True]
    assert rois[0].coordinates(multi=True)[1].tolist() == [[2, 1], [1, 1], [1, 2], [2, 2], [2, 1]]
    assert read_rois(path).instances == found


def test_an_image_wider_than_imagejs_integers(tmp_path):
    labels = np.zeros((3, 90_000), np.int32)
    labels[0, 1:], labels[1:, 5], labels[2, 60_000:80_000], labels[1, 32_766] = 1, 2, 3, 4
    found = Instances.from_labels(labels)
    assert read_rois(write_rois(tmp_path / "a.zip", found)).instances == found


@pytest.mark.parametrize(
    ("path", "found", "classes", "reason"),
    [
        ("a.roi", two(), CLASSES, "end it with .zip"),
        ("a.zip", two(), ("HEK",), "class 2 of 1"),
        ("a.zip", two(class_ids=[-1, 0]), CLASSES, "name every class"),
        ("a.zip", two(), tuple(map(str, range(256))), "256 classes"),
        ("a.zip", Instances.from_runs((2, 2), [0], [1], [0, 1, 1]), (), "cell 2 of a.zip has no pixel"),
    ],
)
def test_rois_that_cannot_be_written(tmp_path, path, found, classes, reason):
    with pytest.raises(UserError, match=reason):
        write_rois(tmp_path / path, found, classes)
    assert not list(tmp_path.iterdir())


def roi(kind=ROI_TYPE.POLYGON, points=None, **fields):
    """A ROI as Fiji would save it."""
    if points is None:
        return ImagejRoi(roitype=kind, **fields)
    made = ImagejRoi.frompoints(np.array(points))
    made.roitype = kind
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def zipped(folder, *rois, name="RoiSet.zip"):
    with zipfile.ZipFile(folder / name, "w") as archive:
        for k, member in enumerate(rois):
            archive.writestr(f"{k:04d}.roi", member if isinstance(member, bytes) else member.tobytes())
    return folder / name


def composite(*numbers):
    path = np.array(numbers, np.float32)
    return roi(ROI_TYPE.RECT, right=3, bottom=3, shape_roi_size=len(path), multi_coordinates=path)


def floating(*points):
    """A polygon with sub-pixel corners, whatever they are."""
    made = roi(ROI_TYPE.POLYGON, np.zeros((len(points), 2), int), options=ROI_OPTIONS.SUB_PIXEL_RESOLUTION)
    made.subpixel_coordinates = np.array(points, np.float32)
    return made


def ellipse(**fields):
    return roi(ROI_TYPE.FREEHAND, [[0, 0], [1, 1], [2, 2]], subtype=ROI_SUBTYPE.ELLIPSE, **fields)


def ratio(value):
    """What the bytes of arrow style and head say as a number."""
    style, head, arc = struct.unpack(">BBh", struct.pack(">f", value))
    return {"arrow_style_or_aspect_ratio": style, "arrow_head_size": head, "rounded_rect_arc_size": arc}


@pytest.mark.parametrize(
    ("member", "mask"),
    [
        (roi(ROI_TYPE.RECT, left=1, top=0, right=3, bottom=2), ["011000", "011000", "000000", "000000"]),
        (
            roi(ROI_TYPE.RECT, options=ROI_OPTIONS.SUB_PIXEL_RESOLUTION, left=1, top=1, right=3, bottom=2,
                xd=0.6, yd=0.4, widthd=2.0, heightd=1.0),
            ["011000", "000000", "000000", "000000"],
        ),
        (roi(ROI_TYPE.OVAL, left=0, top=0, right=4, bottom=4), ["011000", "111100", "111100", "011000"]),
        (roi(ROI_TYPE.OVAL, left=2, top=1, right=3, bottom=2), ["000000", "001000", "000000", "000000"]),
        (roi(ROI_TYPE.OVAL, left=-2, top=-2, right=2, bottom=2), ["110000", "100000", "000000", "000000"]),
        (
            roi(ROI_TYPE.OVAL, options=ROI_OPTIONS.SUB_PIXEL_RESOLUTION, left=0, top=0, right=3, bottom=3,
                xd=0.5, yd=0.5, widthd=2.0, heightd=2.0),
            ["010000", "111000", "010000", "000000"],
        ),
        (roi(ROI_TYPE.RECT, left=0, top=0, right=6, bottom=4, rounded_rect_arc_size=4),
         ["011110", "111111", "111111", "011110"]),
        (roi(ROI_TYPE.POLYGON, [[0, 0], [4, 0], [0, 4]]), ["111100", "111000", "110000", "100000"]),
        (roi(ROI_TYPE.FREEHAND, [[1, 1], [5, 1], [5, 3], [1, 3]]), ["000000", "011110", "011110", "000000"]),
        (roi(ROI_TYPE.TRACED, [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [0, 2]]), ["100000", "110000", "000000", "000000"]),
        (roi(ROI_TYPE.POLYGON, [[0.6, 0.6], [2.4, 0.6], [2.4, 2.6], [0.6, 2.6]]), ["000000", "010000", "010000", "000000"]),
        (ellipse(x1=1.0, y1=2.0, x2=5.0, y2=2.0, **ratio(0.5)), ["000000", "011110", "011110", "000000"]),
        (
            roi(ROI_TYPE.FREEHAND, [[0, 0], [1, 1], [2, 2]], subtype=ROI_SUBTYPE.ROTATED_RECT, x1=0.0, y1=2.0, x2=4.0, y2=2.0,
                **ratio(2.0)),
            ["000000", "111100", "111100", "000000"],
        ),
        (composite(0, 0, 0, 1, 3, 0, 1, 3, 3, 1, 0, 3, 4, 0, 1, 1, 1, 1, 2, 1, 2, 2, 1, 2, 1, 4),
         ["111000", "101000", "111000", "000000"]),
        (composite(0, 0, 0, 3, 8, 0, 8, 4, 0, 4, 1, 0, 4, 4), ["111100", "111111", "111111", "111100"]),  # a cubic curve
        (composite(0, 0, 0, 2, 8, 2, 0, 4, 4), ["110000", "111100", "111100", "110000"]),  # a quadratic one
    ],
)  # fmt: skip
def test_selections_of_every_kind(tmp_path, member, mask):
    rois = read_rois(zipped(tmp_path, member), (4, 6))
    got = rois.instances.mask(0)
    wanted = np.array([[c == "1" for c in row] for row in mask])
    known = np.array([[c != "?" for c in row] for row in mask])
    np.testing.assert_array_equal(got[known], wanted[known])
    assert (rois.names, rois.classes) == (["0000"], ())


def test_groups_of_fiji_are_classes(tmp_path):
    square = [[0, 0], [2, 0], [2, 2], [0, 2]]
    path = zipped(tmp_path, roi(points=square, group=2), roi(points=square), roi(points=square, group=1))
    rois = read_rois(path, (3, 3))
    assert (rois.classes, rois.instances.class_ids.tolist()) == (("group 1", "group 2"), [2, 0, 1])


def test_after_fiji_the_classes_are_still_known(tmp_path):
    """Fiji keeps group and properties of what it opened; a new ROI has neither, and the comment of the zip is gone."""
    written = write_rois(tmp_path / "a_rois.zip", two(), CLASSES)
    with zipfile.ZipFile(written) as archive:
        kept = ImagejRoi.frombytes(archive.read("0002.roi"))
    kept.group = 2  # the person changed its class
    path = zipped(
        tmp_path, kept, roi(points=[[0, 0], [1, 0], [1, 1], [0, 1]], group=1), roi(ROI_TYPE.OVAL, right=3, bottom=3)
    )
    rois = read_rois(path)
    assert (rois.classes, rois.instances.class_ids.tolist()) == (CLASSES, [2, 1, 0])
    assert rois.instances.shape == (3, 5)


def test_cellposes_own_zips_are_read_as_imagej_reads_them(tmp_path):
    """Cellpose draws through the centres of the outermost pixels: ImageJ then leaves out the last column and row."""
    from cellpose import io as cellpose_io

    labels = np.zeros((20, 30), np.uint16)
    labels[3:9, 4:12], labels[10:18, 15:25] = 1, 2
    cellpose_io.save_rois(labels, str(tmp_path / "a.png"))
    found = read_rois(tmp_path / "a_rois.zip", (20, 30)).instances
    assert found.boxes_xywh.tolist() == [[4, 3, 7, 5], [15, 10, 9, 7]]


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (roi(ROI_TYPE.LINE, x2=3.0), "0000.roi is a selection of kind line"),
        (roi(ROI_TYPE.POINT, [[1, 1]]), "kind point"),
        (roi(ROI_TYPE.POLYLINE, [[1, 1], [2, 2]]), "kind polyline"),
        (roi(ROI_TYPE.RECT, right=2, bottom=2, subtype=ROI_SUBTYPE.TEXT), "kind text"),
        (roi(points=[[0, 0], [2, 0], [2, 2]], options=ROI_OPTIONS.SPLINE_FIT), "fitted spline"),
        (roi(points=[[7, 7], [9, 7], [9, 9]]), "covers no pixel of its image of 4 x 6"),
        (roi(ROI_TYPE.RECT, left=1, right=1, top=1, bottom=3), "covers no pixel"),
        (roi(ROI_TYPE.OVAL, left=1, right=1, top=1, bottom=3), "its box is empty"),
        (floating([0, 0], [np.nan, 0], [2, 2]), "not finite"),
        (roi(ROI_TYPE.RECT, options=ROI_OPTIONS.SUB_PIXEL_RESOLUTION, right=1, bottom=1, 
             widthd=1e30, heightd=1.0), "not finite or far away"),
        (ellipse(x1=0.0, y1=0.0, x2=float("inf"), y2=0.0, **ratio(0.5)), "not finite"),
        (composite(1, 2, 2), "path is damaged"),
        (composite(0, 2), "path is damaged"),
        (composite(np.nan, 2, 2), "damaged"),
        (b"Iout", "0000.roi is no ImageJ ROI"),
        (b"MZ" * 100, "is no ImageJ ROI"),
        (roi(ROI_TYPE.POLYGON, [[0, 0], [2, 0], [2, 2]]).tobytes()[:66], "is no ImageJ ROI"),
        (roi(ROI_TYPE.RECT, right=3, bottom=3, props="cellkit.score: 7\n"), "score"),
        (roi(ROI_TYPE.RECT, right=3, bottom=3, props="cellkit.shape: 9,9\n"), "different size"),
    ],
)  # fmt: skip
def test_a_bad_roi_is_refused_by_name(tmp_path, member, reason):
    good = roi(ROI_TYPE.RECT, right=2, bottom=2)
    path = zipped(tmp_path, member, good)
    with np.errstate(all="ignore"):
        assert reason in refused(read_rois, path, (4, 6))


@pytest.mark.parametrize("axis", ["position", "z_position", "t_position"])
def test_a_roi_bound_to_no_plane_goes_with_those_of_any(tmp_path, axis):
    box = {"right": 2, "bottom": 2}
    free, bound, other = (roi(ROI_TYPE.RECT, **box, **({axis: k} if k else {})) for k in (0, 3, 4))
    assert len(read_rois(zipped(tmp_path, free, bound, bound), (4, 6)).instances) == 3
    assert "ROIs of 2 planes" in refused(read_rois, zipped(tmp_path, free, bound, other), (4, 6))


def test_rois_that_are_no_cells_are_set_aside_and_the_rest_read(said, tmp_path, pictures):
    good = roi(ROI_TYPE.RECT, right=2, bottom=2)
    bad = [b"", roi(ROI_TYPE.LINE, x2=3.0), roi(ROI_TYPE.POINT, [[1, 1]]), roi(points=[[7, 7], [9, 7], [9, 9]])]
    aside = []
    found = read_rois(zipped(tmp_path, bad[0], good, *bad[1:], good), (3, 5), aside)
    assert ([len(found.instances), found.names], len(aside)) == ([2, ["0001", "0005"]], 4)
    with pytest.raises(UserError, match="kind line"):
        read_rois(zipped(tmp_path, *bad[1:]), (3, 5), [])
    (tmp_path / "in").mkdir()
    os.replace(zipped(tmp_path, bad[1], good), tmp_path / "in/a.zip")
    code, out, err = said("coco", tmp_path / "in", "-o", tmp_path / "c.json", "--images", pictures)
    assert (code, out) == (3, f"{tmp_path / 'c.json'}: 1 image, 1 cell\n")
    assert "skipped: a.zip: " in err and "0000.roi is a selection of kind line" in err


def test_a_roi_is_called_after_the_number_of_its_cell(tmp_path, pictures):
    """A cell without pixels is left out, and the names of those behind it stay those of the label image."""
    masks = [TWO == 1, TWO == 9, TWO == 2]
    cells = Instances.from_masks(masks, (3, 5))
    done = write_folder(tmp_path / "out", records("a"), [cells], form="roi")
    rois = read_rois(tmp_path / "out/a_rois.zip")
    assert (done.left_out, rois.names) == (1, ["0001", "0003"])
    write_folder(tmp_path / "tif", records("a"), [cells])
    np.testing.assert_array_equal(np.unique(read_labels(tmp_path / "tif/a.tif")), [0, 1, 3])
    write_folder(tmp_path / "out", records("a"), [cells[[True, False, False]]], form="roi")
    assert read_rois(tmp_path / "out/a_rois.zip").names == ["0001"], "a cell that is gone does not stay in the zip"
    four = Instances.from_masks([*masks[:1], TWO == 2, TWO == 0, masks[0]], (3, 5))
    assert read_rois(write_rois(tmp_path / "b.zip", four, (), [1, 2, 3, 40])).names == ["0001", "0002", "0003", "0040"]
    with pytest.raises(UserError, match="number each cell once"):
        write_rois(tmp_path / "b.zip", two(), CLASSES, [3, 3])


def test_rois_of_several_planes_or_of_no_known_size_are_refused(tmp_path):
    first, second = (roi(ROI_TYPE.RECT, right=2, bottom=2, position=k) for k in (1, 2))
    assert "ROIs of 2 planes" in refused(read_rois, zipped(tmp_path, first, second), (4, 6))
    assert "how large its image is" in refused(read_rois, zipped(tmp_path, first))
    assert "different size" in refused(read_rois, write_rois(tmp_path / "a.zip", two(), CLASSES), (9, 9))
    for bad in ("cellkit.shape: 3\n", "cellkit.shape: 0,4\n", "cellkit.shape: 9999999,1\n"):
        assert "sizes are" in refused(read_rois, zipped(tmp_path, roi(ROI_TYPE.RECT, right=2, bottom=2, props=bad)))


def member(name, content=b"Iout", compress=zipfile.ZIP_DEFLATED, mode=0):
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, compress
    return info, content


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([member("../evil.roi")], "'../evil.roi' leads out of the zip"),
        ([member("a/../../evil.roi")], "leads out"),
        ([member("/etc/evil.roi")], "leads out"),
        ([member("C:\\evil.roi")], "leads out|leads out"),
        ([member("link.roi", b"/etc/passwd", mode=stat.S_IFLNK | 0o777)], "'link.roi' is a link"),
        ([member("run.exe")], "'run.exe' is no ROI"),
        ([member("bomb.roi", bytes(2**22))], "'bomb.roi' is packed"),
        ([member("large.roi", bytes(2**26 + 1), zipfile.ZIP_STORED)], "unpacks to 67108865 bytes"),
    ],
)
def test_a_bad_member_is_refused_by_name(tmp_path, members, reason):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0001.roi", roi(ROI_TYPE.RECT, right=2, bottom=2).tobytes())
        for info, content in members:
            archive.writestr(info, content)
    assert reason.split("|")[0] in refused(read_rois, tmp_path / "a.zip", (4, 6))
    assert list(tmp_path.iterdir()) == [tmp_path / "a.zip"], "nothing is unpacked to disk"


def test_a_member_twice_or_one_that_lies_about_its_size(tmp_path):
    content = roi(ROI_TYPE.RECT, right=2, bottom=2).tobytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("1.roi", content)
        archive.writestr("1.roi", content)
    assert "'1.roi' is there twice" in refused(read_rois, tmp_path / "a.zip", (4, 6))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.roi", content + bytes(2**22))
    data = buffer.getvalue().replace(struct.pack("<I", len(content) + 2**22), struct.pack("<I", 300))
    (tmp_path / "b.zip").write_bytes(data)
    assert "1.roi cannot be unpacked" in refused(read_rois, tmp_path / "b.zip", (4, 6))


def test_what_macos_adds_is_passed_over(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("rois/", b"")
        archive.writestr("rois/1.roi", roi(ROI_TYPE.RECT, right=2, bottom=2).tobytes())
        archive.writestr("__MACOSX/rois/._1.roi", b"junk")
        archive.writestr("rois/.DS_Store", b"junk")
    assert read_rois(tmp_path / "a.zip", (4, 6)).names == ["1"]


def test_what_is_no_zip(tmp_path):
    with pytest.raises(UserError, match="no file at"):
        read_rois(tmp_path / "none.zip")
    (tmp_path / "a.zip").write_bytes(b"PK" + bytes(50))
    assert "is no zip" in refused(read_rois, tmp_path / "a.zip")


def test_mangled_zips_are_read_or_refused(tmp_path):
    rng = random.Random(0)
    labels = np.array([[1, 1, 1, 0, 2], [1, 0, 1, 0, 0], [1, 1, 1, 0, 2]])
    with zipfile.ZipFile(write_rois(tmp_path / "a.zip", Instances.from_labels(labels))) as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    good = write_rois(tmp_path / "g.zip", Instances.from_labels(labels)).read_bytes()
    read = 0
    for turn in range(900):
        if turn % 3:
            broken = bytearray(rng.choice(contents))
            for _ in range(rng.randint(1, 3)):
                broken[rng.randrange(4, len(broken))] = rng.randrange(256)
            path = zipped(tmp_path, bytes(broken), contents[0], name="m.zip")
        else:
            broken = bytearray(good)
            broken[rng.randrange(len(broken))] = rng.randrange(256)
            path = tmp_path / "m.zip"
            path.write_bytes(bytes(broken))
        try:
            with np.errstate(all="ignore"):
                found = read_rois(path, (3, 5)).instances
            assert (found.areas_px > 0).all() and found.shape == (3, 5)
            read += 1
        except UserError as error:
            assert str(path) in str(error)
    assert 60 < read < 840


def test_a_crowded_image_takes_a_moment(tmp_path):
    labels = crowded()
    found = Instances.from_labels(labels)
    begun = time.perf_counter()
    assert read_rois(write_rois(tmp_path / "a.zip", found)).instances == found
    assert read_seg(write_seg(tmp_path / "a_seg.npy", None, found)).instances == found
    assert len(found) > 1450
    assert time.perf_counter() - begun < 10, "measured: 0.4 s"


def test_a_group_of_a_high_number_takes_a_moment(tmp_path):
    path = write_rois(
        tmp_path / "a_rois.zip", Instances.from_labels(np.eye(20, dtype=np.int32), class_ids=[1]), ("HEK",)
    )
    (roi,) = ImagejRoi.fromfile(path)
    roi.group, roi.version = 50_000, 229  # two bytes for the group
    path.unlink()
    roi.tofile(path, name="0001.roi")
    begun = time.process_time()
    side = read_side(path)
    assert (side.classes[-1], side.instances[0].class_ids.tolist()) == ("group 50000", [50_000])
    assert time.process_time() - begun < 4, "measured: 0.1 s; 12 s where each name was looked for in a list"
