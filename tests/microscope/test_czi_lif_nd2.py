"""CZI, LIF and ND2: axes, channels, scenes and times as their makers meant."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import convert_file
from stack_cases import RNG, STACK, all_planes, lif_image, plane, write_czi, write_lif

from cellkit.errors import UserError
from cellkit.microscope.convert import Conversion
from cellkit.microscope.file_info import Reader
from cellkit.microscope.open import inspect_file
from cellkit.microscope.stacks import parse_xml
from cellkit.sources.inspection import file_to_text, files_to_text, list_microscope_files

# ---- CZI -----------------------------------------------------------------------------------------------------------


def test_scenes_of_a_czi_are_told_apart(tmp_path):
    path = write_czi(tmp_path / "a.czi", scenes=3)
    info = inspect_file(path)
    assert [suffix for *_, suffix in info.frames()] == [f"_s{s}_t{t}" for s in range(3) for t in range(2)]
    for scene in range(3):
        np.testing.assert_array_equal(plane(path, scene, 1, 2, 1), STACK[1, 1, 2] + scene, strict=True)


def test_tiles_of_a_mosaic_become_one_picture_wherever_it_lies(tmp_path):
    from pylibCZIrw import czi

    whole = RNG.integers(0, 256, (20, 60), dtype=np.uint8)
    with czi.create_czi(str(tmp_path / "a.czi")) as file:
        for x in (0, 30):
            file.write(whole[:, x : x + 30].copy(), location=(7000 + x, 9000))
    assert inspect_file(tmp_path / "a.czi").shape == (20, 60)
    np.testing.assert_array_equal(plane(tmp_path / "a.czi"), whole, strict=True)


def test_colours_of_a_czi_are_red_green_blue(tmp_path):  # fault 10
    one = (STACK[:1, :1, :1] // 16).astype(np.uint8)
    path = write_czi(tmp_path / "a.czi", rgb=True, stack=one.astype(np.uint16))
    info = inspect_file(path)
    assert (info.axes, info.shape, info.channels) == ("YXS", (20, 30, 3), ("red", "green", "blue"))
    stored = one[0, 0, 0].astype(np.uint16)
    from pylibCZIrw import czi

    with czi.open_czi(str(path)) as file:  # the library gives and takes blue first
        np.testing.assert_array_equal(file.read()[..., 0], stored)
    assert [int(plane(path, channel=c).sum()) for c in range(3)] == [int(stored.sum()) * k for k in (3, 2, 1)]


def test_colours_in_several_channels_are_channels_of_their_own(tmp_path):
    path = write_czi(tmp_path / "a.czi", rgb=True, stack=STACK[:1, :, :1])
    info = inspect_file(path)
    assert info.axes == "CYXS"
    assert info.channels == tuple(f"{name} {colour}" for name in ("DAPI", "GFP") for colour in ("red", "green", "blue"))
    np.testing.assert_array_equal(plane(path, channel=5), STACK[0, 1, 0])
    np.testing.assert_array_equal(plane(path, channel=1), STACK[0, 0, 0] * 2)


@pytest.mark.parametrize(
    "how", ["uncompressed:", "zstd0:ExplicitLevel=3", "zstd1:ExplicitLevel=3;PreProcess=HiLoByteUnpack"]
)
def test_compressed_czi(tmp_path, how):
    path = write_czi(tmp_path / "a.czi", how=how)
    np.testing.assert_array_equal(np.array(all_planes(path)).reshape(2, 3, 2, 20, 30).transpose(0, 2, 1, 3, 4), STACK)


def test_planes_that_were_never_recorded_are_no_black_pictures(tmp_path):
    from pylibCZIrw import czi

    with czi.create_czi(str(tmp_path / "a.czi")) as file:
        for t, c in ((0, 0), (0, 1), (1, 0)):  # stopped before the last channel of the last time
            file.write(STACK[t, c, 0], plane={"T": t, "C": c, "Z": 0})
    assert inspect_file(tmp_path / "a.czi").shape == (2, 2, 20, 30)
    with pytest.raises(UserError, match="holds no pixels of T 1, C 1"):
        plane(tmp_path / "a.czi", time=1, channel=1)


def test_pixels_of_several_types_are_refused(tmp_path):
    from pylibCZIrw import czi

    with czi.create_czi(str(tmp_path / "a.czi")) as file:
        file.write(STACK[0, 0, 0], plane={"C": 0})
        file.write(STACK[0, 0, 0].astype(np.uint8), plane={"C": 1})
    with pytest.raises(UserError, match=r"axes CYX \(2, 20, 30\) and pixels of type Gray16, Gray8"):
        inspect_file(tmp_path / "a.czi")


class FakeCzi:
    """A CZI with axes that no writer here can write."""

    raw_metadata = ""

    def __init__(self, *blocks):
        self.blocks = blocks

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def enumerate_subblocks(self, note):
        rect = SimpleNamespace(x=0, y=0, w=30, h=20)
        for at in self.blocks:
            at = SimpleNamespace(to_dict=lambda at=at: at)
            note(
                0,
                SimpleNamespace(
                    coordinate=at, logicalRect=rect, pixelType=SimpleNamespace(name="Gray8"), get_zoom=lambda: 1.0
                ),
            )


def test_phases_and_views_of_a_czi_are_refused_with_its_axes(tmp_path, monkeypatch):  # fault 12
    (tmp_path / "a.czi").write_bytes(b"x")
    module = SimpleNamespace(open_czi=lambda path: FakeCzi({"C": 0, "H": 0}, {"C": 0, "H": 1}))
    monkeypatch.setattr(Reader, "library", lambda reader, name: module)
    with pytest.raises(UserError, match=r"axes HYX \(2, 20, 30\): H is no time, channel or z plane\n.*OME-TIFF"):
        inspect_file(tmp_path / "a.czi")


# ---- LIF -----------------------------------------------------------------------------------------------------------


def test_xz_planes_are_refused_and_can_be_stated_to_count_as_pictures(tmp_path):
    path = write_lif(tmp_path / "a.lif", lif_image("xzt", "TCZX", STACK[:, :, 0]))
    with pytest.raises(
        UserError, match=r"'xzt', has axes TCZX \(2, 2, 20, 30\): its planes lie along Z and X.*\n.*axes: TCYX"
    ):
        inspect_file(path)
    np.testing.assert_array_equal(plane(path, time=1, channel=1, axes="TCYX"), STACK[1, 1, 0], strict=True)
    path = write_lif(tmp_path / "b.lif", lif_image("xzy", "YCZX", STACK[:, :, 0]))
    with pytest.raises(UserError, match=r"axes YCZX .*along Z and X"):
        inspect_file(path)


def test_bands_of_a_wavelength_sweep_are_channels(tmp_path):
    path = write_lif(tmp_path / "a.lif", lif_image("sweep", "λYX", STACK[0, 0], length="2e-8"))
    info = inspect_file(path)
    assert (info.axes, info.channels) == ("CYX", ("emission 500 nm", "emission 510 nm", "emission 520 nm"))
    (made,) = convert_file(path, Conversion({"nuclei": 512}, percentiles=(0, 100)))
    assert made.channels == "red=;green=;blue=emission 510 nm"
    assert info.channels[0] in file_to_text(info) and "500 nm 500 nm" not in file_to_text(info)
    assert inspect_file(path, "ZYX").channels == ("",), "stated axes have the last word"


def test_stage_positions_of_a_lif_are_scenes(tmp_path):
    path = write_lif(tmp_path / "a.lif", lif_image("well", "MCYX", STACK[:, :, 0]))
    info = inspect_file(path)
    assert [(s.name, s.axes, s.shape) for s in info.series] == [
        (f"well position {k}", "CYX", (2, 20, 30)) for k in (0, 1)
    ]
    np.testing.assert_array_equal(plane(path, scene=1, channel=1), STACK[1, 1, 0], strict=True)


def test_odd_axes_and_line_scans_are_refused_with_the_axes(tmp_path):  # fault 12
    path = write_lif(tmp_path / "a.lif", lif_image("odd", "HYX", STACK[0, 0]))
    with pytest.raises(UserError, match=r"axes \S+YX \(3, 20, 30\): the meaning of .* is not known\n.*axes: TYX"):
        inspect_file(path)
    assert len(list(inspect_file(path, "TYX").frames())) == 3
    path = write_lif(tmp_path / "line.lif", lif_image("line", "TX", STACK[0, 0, 0]))
    with pytest.raises(UserError, match=r"axes TX \(20, 30\): its planes lie along T and X"):
        inspect_file(path)


def test_one_image_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    from cellkit.config.sections import ChannelsConfig, ConvertConfig, SplitConfig
    from cellkit.sources.ingest import convert_images

    images = lif_image("cut", "ZX", STACK[0, 0, 0]), lif_image("field", "CYX", STACK[0, :, 0])
    (tmp_path / "in").mkdir()
    path = write_lif(tmp_path / "in" / "a.lif", *images)
    info = inspect_file(path)
    assert [bool(series.problem) for series in info.series] == [True, False]
    assert (info.axes, list(info.frames())) == ("CYX", [(0, 0, "_s0"), (1, 0, "_s1")])
    assert (info.to_json()["images"], info.to_json()["series"][0]["axes"]) == (1, "ZX")
    lines = file_to_text(info).splitlines()
    assert lines[0].endswith("lif, 2 scenes") and lines[1].startswith("scene 0 cut: ZX 20 x 30")
    assert "not read:" in lines[1] and "becomes 1 picture (2 scenes, 1 of them not read)" in lines[3]
    how = ConvertConfig(
        source="folder",
        classes=("cell",),
        channels=ChannelsConfig(nuclei=0),
        split=SplitConfig(train=1.0, val=0.0, test=0.0),
    )
    made = convert_images(how, tmp_path / "in", tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["a_s1"]
    assert len(made.quarantined) == 1 and "along Z and X" in made.quarantined[0].reason
    (row,) = list_microscope_files(tmp_path / "in")
    assert files_to_text([row]).splitlines()[2].split("|")[-2].strip().startswith("1 picture of 2 scenes; 1 refused: ")


@pytest.mark.parametrize("tags", [(1, 2, 3), (3, 2, 1)])  # stored red first, blue first
def test_colours_of_a_lif_are_red_green_blue(tmp_path, tags):  # fault 10
    colours = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = write_lif(tmp_path / "a.lif", lif_image("rgb", "YXS", colours, tags=tags))
    info = inspect_file(path)
    assert (info.axes, info.shape, info.channels) == ("YXS", (20, 30, 3), ("red", "green", "blue"))
    for tag, stored in zip(tags, colours.transpose(2, 0, 1), strict=True):
        np.testing.assert_array_equal(plane(path, channel=tag - 1), stored, strict=True)


def test_channels_of_several_types_in_a_lif_are_refused(tmp_path):
    path = write_lif(tmp_path / "a.lif", lif_image("both", "CYX", STACK[0, :, 0], bits=(8,)))
    with pytest.raises(UserError, match="image 'both', cannot be described: heterogeneous"):
        inspect_file(path)


def test_an_image_whose_recording_was_stopped_is_refused(tmp_path):
    element, block, pixels = lif_image("stopped", "TYX", STACK[0, 0])
    path = write_lif(tmp_path / "a.lif", (element, block, pixels[: len(pixels) // 2]))
    with pytest.raises(UserError, match=r"axes TYX \(3, 20, 30\), 3600 bytes, and 1800 are stored"):
        inspect_file(path)


def test_metadata_that_would_expand_is_not_parsed_by_us(tmp_path):
    with pytest.raises(UserError, match="document type"):
        parse_xml(tmp_path / "a.czi", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')


# ---- ND2: no writer is known, so its reader is given a stand-in of the library's file -------------------------------


class FakeNd2:
    """What nd2.ND2File tells of a file: loops in any order, then channels, rows, columns, colours."""

    def __init__(self, sizes: dict, pixels: np.ndarray, calibrated: bool = True):
        self.sizes, self.pixels, self.dtype = sizes, pixels, pixels.dtype
        self.loops = [axis for axis in sizes if axis not in "CYXS"]
        lengths = [sizes[axis] for axis in self.loops]
        self.loop_indices = [dict(zip(self.loops, at, strict=True)) for at in product(*map(range, lengths))]
        rows, row_bytes = sizes["Y"], pixels[0].nbytes // sizes["Y"]
        self.attributes = SimpleNamespace(
            sequenceCount=len(self.loop_indices), heightPx=rows, widthBytes=row_bytes, compressionType=None
        )
        volume = SimpleNamespace(axesCalibrated=(calibrated,) * 3, axesCalibration=(0.5, 0.5, 1.0))
        named = [SimpleNamespace(name=f"c{k}", emissionLambdaNm=500.0 + k) for k in range(sizes.get("C", 1))]
        self.metadata = SimpleNamespace(channels=[SimpleNamespace(channel=one, volume=volume) for one in named])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def read_frame(self, number: int) -> np.ndarray:
        return self.pixels[number]


@pytest.fixture
def as_nd2(tmp_path, monkeypatch):
    def make(*given, **how) -> Path:
        fake = FakeNd2(*given, **how)
        monkeypatch.setattr(Reader, "library", lambda reader, name: SimpleNamespace(ND2File=lambda path: fake))
        path = tmp_path / "a.nd2"
        path.write_bytes(bytes(fake.pixels.nbytes))
        return path

    return make


def test_stage_positions_of_an_nd2_are_scenes(as_nd2):
    frames = STACK.reshape(2, 6, 20, 30).transpose(1, 0, 2, 3)  # 3 times x 2 positions, 2 channels each
    path = as_nd2({"T": 3, "P": 2, "C": 2, "Y": 20, "X": 30}, frames)
    info = inspect_file(path)
    assert [(s.name, s.axes, s.shape) for s in info.series] == [
        (f"position {p}", "TCYX", (3, 2, 20, 30)) for p in (0, 1)
    ]
    assert (info.channels, info.um_per_px) == (("c0", "c1"), 0.5)
    for t, p, c in product(range(3), range(2), range(2)):
        np.testing.assert_array_equal(plane(path, p, t, 0, c), frames[2 * t + p, c], strict=True)


def test_colours_of_an_nd2_and_a_pixel_size_nobody_measured(as_nd2):
    frames = np.ascontiguousarray(STACK[:1, 0].transpose(0, 2, 3, 1))
    path = as_nd2({"Y": 20, "X": 30, "S": 3}, frames, calibrated=False)
    info = inspect_file(path)
    assert (info.axes, info.channels) == ("YXS", ("red", "green", "blue"))
    assert np.isnan(info.um_per_px)
    np.testing.assert_array_equal(plane(path, channel=1), STACK[0, 0, 1], strict=True)


def test_an_nd2_shorter_than_its_frames_is_refused(as_nd2):  # faults 1 and 4
    path = as_nd2({"T": 2, "Y": 20, "X": 30}, STACK[:, 0, 0])
    path.write_bytes(bytes(STACK[:, 0, 0].nbytes - 1))
    with pytest.raises(UserError, match="2400 bytes are announced, 2399 are there"):
        inspect_file(path)
    path = as_nd2({"U": 2, "Y": 20, "X": 30}, STACK[:, 0, 0])
    with pytest.raises(UserError, match=r"axes UYX \(2, 20, 30\): the meaning of U is not known"):
        inspect_file(path)
    np.testing.assert_array_equal(plane(path, time=1, axes="TYX"), STACK[1, 0, 0])
