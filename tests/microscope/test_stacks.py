"""CZI, LIF, ND2 and OME-Zarr: written here where a writer exists, real ones where the data folder is; damaged ones refused."""

import json
import re
import struct
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from conftest import convert_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellkit.commands.machine_report import check_formats
from cellkit.commands.machine_report import report_text as tell_doctor
from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.microscope.convert import Conversion
from cellkit.microscope.file_info import Reader
from cellkit.microscope.ome_zarr import _zarr_um_per_px
from cellkit.microscope.open import READER_OF, READERS, inspect_file, open_file
from cellkit.microscope.stacks import parse_xml
from cellkit.sources.inspection import file_to_text, files_to_text, list_microscope_files

ROOT = Path(__file__).parents[2]
LIBRARY_SUFFIXES = [suffix for suffix, reader in READER_OF.items() if reader.module]
RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 4000, (2, 2, 3, 20, 30), dtype=np.uint16)  # T, C, Z, Y, X


def plane(path, scene=0, time=0, z=0, channel=0, axes=None):
    with open_file(path, axes) as opened:
        return opened.plane(scene, time, z, channel)


def all_planes(path, axes=None) -> list[np.ndarray]:
    """Every plane of every scene that can be read."""
    with open_file(path, axes) as opened:
        series = opened.info.series
        return [
            opened.plane(scene, t, z, c)
            for scene, one in enumerate(series)
            if not one.problem
            for t, z, c in product(range(one.size("T")), range(one.size("Z")), range(len(one.channels)))
        ]


# ---- writers -------------------------------------------------------------------------------------------------------
def write_czi(path, scenes=1, rgb=False, stack=STACK, how=None) -> Path:
    """A CZI of TCZ planes; scene k holds the values plus k."""
    from pylibCZIrw import czi

    with czi.create_czi(str(path)) as file:
        for scene, t, c, z in product(range(scenes), *map(range, stack.shape[:3])):
            pixels = stack[t, c, z] + np.uint16(scene)
            pixels = np.stack([pixels, pixels * 2, pixels * 3], -1) if rgb else pixels
            at = {"T": t, "C": c, "Z": z}
            file.write(pixels, plane=at, scene=scene, location=(1000 * scene, 0), compression_options=how)
        names = {c: name for c, name in enumerate(("DAPI", "GFP")[: stack.shape[1]])}
        file.write_metadata("a", channel_names=names, scale_x=2.5e-7, scale_y=2.5e-7)
    return path


def lif_image(name, axes, array, channel_xml=None, length="9e-6", tags=(0,) * 9, bits=()) -> tuple[str, str, bytes]:
    """The XML and the pixels of one LIF image; axes in LIF's own letters, slowest first, stored without gaps."""
    ids = {"X": 1, "Y": 2, "Z": 3, "T": 4, "λ": 5, "M": 10, "H": 99}
    steps, size = {}, array.itemsize
    for axis, n in reversed(list(zip(axes, array.shape, strict=True))):
        steps[axis], size = size, size * n
    step_m = float(length) / max(dict(zip(axes, array.shape, strict=True))["X"] - 1, 1)
    lengths = {"X": length, "Y": step_m * (dict(zip(axes, array.shape, strict=True)).get("Y", 1) - 1)}  # square pixels
    dims = "".join(
        f'<DimensionDescription DimID="{ids[axis]}" NumberOfElements="{n}" Origin="5e-7" '
        f'Length="{lengths.get(axis, length)}" Unit="m" '
        f'BitInc="0" BytesInc="{steps[axis]}"/>'
        for axis, n in reversed(list(zip(axes, array.shape, strict=True)))
        if axis not in "CS"
    )
    count = dict(zip(axes, array.shape, strict=True)).get("S" if "S" in axes else "C", 1)
    step = steps.get("S", steps.get("C", 0))
    depths = [8 * array.itemsize, *bits]
    channel_xml = channel_xml or ["" for _ in range(count)]
    channels = "".join(
        f'<ChannelDescription DataType="0" ChannelTag="{tags[k]}" '
        f'Resolution="{depths[-1 if k else 0]}" NameOfMeasuredQuantity="" '
        f'Min="0" Max="1" Unit="" LUTName="Green" IsLUTInverted="0" BytesInc="{k * step}" BitInc="0">{xml}'
        "</ChannelDescription>"
        for k, xml in enumerate(channel_xml)
    )
    block = f"MemBlock_{name}"
    element = (
        f'<Element Name="{name}"><Memory Size="{array.nbytes}" MemoryBlockID="{block}"/><Data><Image><ImageDescription>'
        f"<Channels>{channels}</Channels><Dimensions>{dims}</Dimensions></ImageDescription></Image></Data></Element>"
    )
    return element, block, array.tobytes()


def write_lif(path, *images) -> Path:
    """A LIF file: its XML, then one memory block per image."""
    body = "".join(element for element, _, _ in images)
    text = f'<LMSDataContainerHeader Version="2"><Element Name="a"><Children>{body}</Children></Element>'
    text = (text + "</LMSDataContainerHeader>").encode("utf-16-le")
    content = struct.pack("<IIBI", 0x70, len(text) + 5, 0x2A, len(text) // 2) + text
    for _, block, pixels in images:
        name = block.encode("utf-16-le")
        content += struct.pack("<IIBQBI", 0x70, 0, 0x2A, len(pixels), 0x2A, len(block)) + name + pixels
    path.write_bytes(content)
    return path


AXES_XML = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def image_metadata(version, axes="tczyx", names=("DAPI", "GFP"), um_per_px=0.25, dataset="0") -> dict:
    units = {"unit": "micrometer"}
    multiscales = {
        "axes": [{"name": a, "type": AXES_XML.get(a, "other"), **(units if a in "zyx" else {})} for a in axes],
        "datasets": [
            {
                "path": dataset,
                "coordinateTransformations": [{"type": "scale", "scale": [1.0] * (len(axes) - 2) + [um_per_px] * 2}],
            }
        ],
    }
    return {"multiscales": [multiscales | {"version": version}], "omero": {"channels": [{"label": n} for n in names]}}


def write_zarr(path, stack=STACK, version="0.5", **how) -> Path:
    """An OME-Zarr with one smaller copy, which must not be taken for the image."""
    import zarr

    made = image_metadata(version, **how)
    group = zarr.create_group(str(path), zarr_format=3 if version == "0.5" else 2)
    group.update_attributes({"ome": made} if version == "0.5" else made)
    chunks = (*(1,) * (stack.ndim - 2), 16, 16)
    group.create_array("0", shape=stack.shape, chunks=chunks, dtype=stack.dtype)[...] = stack
    group.create_array("1", shape=stack[..., ::2, ::2].shape, chunks=chunks, dtype=stack.dtype)[...] = stack[
        ..., ::2, ::2
    ]
    return path


def written(kind: str, folder: Path) -> Path:
    """The same stack in any of the formats that can be written here."""
    if kind == "czi":
        return write_czi(folder / "a.czi")
    if kind == "lif":
        dye = "<ChannelProperty><Key>DyeName</Key><Value>{}</Value></ChannelProperty>"
        return write_lif(
            folder / "a.lif", lif_image("a", "TCZYX", STACK, [dye.format("DAPI"), dye.format("GFP")], "7.25e-6")
        )
    return write_zarr(folder / "a.zarr", version=kind)


KINDS = ["czi", "lif", "0.4", "0.5"]


# ---- what all of them have in common -------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_axes_names_pixel_size_and_every_plane(tmp_path, kind):
    path = written(kind, tmp_path)
    info = inspect_file(path)
    assert (info.axes, info.shape, info.dtype) == ("TCZYX", STACK.shape, "uint16")
    assert info.channels == ("DAPI", "GFP")
    assert info.um_per_px == pytest.approx(0.25)
    assert info.reader == (kind if kind in ("czi", "lif") else "ome-zarr")
    assert [frame[1:] for frame in info.frames()] == [(0, "_t0"), (1, "_t1")]
    for t, c, z in product(range(2), range(2), range(3)):
        np.testing.assert_array_equal(plane(path, 0, t, z, c), STACK[t, c, z], strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_all_become_the_same_picture(tmp_path, kind):
    (made, _) = convert_file(written(kind, tmp_path), Conversion({"nuclei": "DAPI", "cytoplasm": 1}, "max", (0, 100)))
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata={"axes": "TCZYX"}, photometric="minisblack")
    (wanted, _) = convert_file(tmp_path / "a.ome.tif", Conversion({"nuclei": 0, "cytoplasm": 1}, "max", (0, 100)))
    np.testing.assert_array_equal(made.image, wanted.image)
    assert made.channels == "red=;green=GFP;blue=DAPI"


@pytest.mark.parametrize("kind", KINDS)
def test_stated_axes_take_the_place_of_the_files_own(tmp_path, kind):  # fault 12
    path = written(kind, tmp_path)
    info = inspect_file(path, "ZCTYX")
    assert (info.axes, len(list(info.frames()))) == ("ZCTYX", 3)
    np.testing.assert_array_equal(plane(path, time=2, z=1, channel=1, axes="ZCTYX"), STACK[1, 1, 2])
    with pytest.raises(UserError, match="one letter for each of the 5 axes"):
        inspect_file(path, "TYX")


@pytest.mark.parametrize("suffix", LIBRARY_SUFFIXES)
def test_missing_empty_and_foreign_files_are_refused(tmp_path, suffix):  # fault 3
    with pytest.raises(UserError, match="no .* at "):
        inspect_file(tmp_path / f"none{suffix}")
    path = tmp_path / f"a{suffix}"
    if suffix == ".zarr":
        path.mkdir()
        with pytest.raises(UserError, match="a.zarr cannot be read as OME-Zarr"):
            inspect_file(path)
        (path / "zarr.json").write_text("not json")
    else:
        path.write_bytes(b"")
        with pytest.raises(UserError, match="is empty"):
            inspect_file(path)
        path.write_bytes(b"a text that is called an image\n" * 50)
    with pytest.raises(UserError, match=f"a{suffix} cannot be read as") as caught:
        inspect_file(path)
    assert str(caught.value).count("\n") == 1


def test_names_are_read_in_any_case_and_unread_formats_are_named(tmp_path):
    written("lif", tmp_path).rename(tmp_path / "A.LIF")
    assert inspect_file(tmp_path / "A.LIF").reader == "lif"
    (tmp_path / "a.oib").write_bytes(b"x")
    with pytest.raises(UserError, match=r"Olympus OIB, which is not read\n.*OME-TIFF"):
        inspect_file(tmp_path / "a.oib")


# ---- readers that are not there ------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", LIBRARY_SUFFIXES)
def test_a_reader_that_is_missing_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch, suffix):
    reader = READER_OF[suffix]
    monkeypatch.setitem(reader.__dict__, "module", "no_such_reader")
    path = tmp_path / f"a{suffix}"
    path.mkdir() if suffix == ".zarr" else path.write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        inspect_file(path)
    problem, remedy = str(caught.value).split("\n")
    assert f"a{suffix} is {reader.kind}, which {reader.package}" in problem
    assert remedy == f"pip install '{reader.requirement}'"
    item = {item["kind"]: item for item in check_formats()}[reader.kind]
    assert (item["ok"], item["remedy"]) == (False, remedy)


def test_doctor_tells_the_formats(monkeypatch):
    listed = check_formats()
    assert [item["kind"] for item in listed] == ["Zeiss CZI", "Leica LIF", "Nikon ND2", "OME-Zarr"]
    assert all(item["ok"] and item["installed"] for item in listed)
    here = {"device": {"name": "cpu", "number_type": "", "cpus": 1}, "memory": {"free_gb": 1, "total_gb": 1}}
    rest = dict.fromkeys(("cellkit", "python", "platform"), "") | {
        "disk": {"free_gb": 1},
        "data": {"problem": "", "value": "x", "name": ""},
    }
    empty = {key: [] for key in ("packages", "backends", "weights", "problems")}
    text = tell_doctor(here | rest | empty | {"formats": listed, "ok": True})
    assert re.search(r"^format +Zeiss CZI +ok$", text, re.MULTILINE)


def test_requirements_are_those_of_the_package_and_only_the_copyleft_one_is_an_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for reader in (one for one in READERS if one.module):
        copyleft = "GPL" in reader.licence
        assert reader.requirement in (extras["czi"] if copyleft else project["dependencies"])
    assert not any("czi" in text.lower() for text in project["dependencies"])
    assert extras["czi"][0] in extras["test"]


def test_readers_are_imported_when_a_file_of_theirs_is_opened(tmp_path):
    path = written("lif", tmp_path)
    code = (
        "import sys, cellkit.microscope.convert; from cellkit.microscope.open import inspect_file\n"
        "here = lambda: [m for m in ('zarr', 'nd2', 'liffile', 'pylibCZIrw', 'dask') if m in sys.modules]\n"
        f"print(here()); inspect_file({str(path)!r}); print(here())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["[]", "['liffile']"]


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


# ---- OME-Zarr ------------------------------------------------------------------------------------------------------
def test_wavelengths_and_names_of_bioformats2raw(tmp_path):
    import zarr

    path = tmp_path / "a.zarr"
    zarr.create_group(str(path), zarr_format=2).update_attributes({"bioformats2raw.layout": 3})
    for number in range(2):
        write_zarr(path / str(number), STACK + np.uint16(number), version="0.4", um_per_px=1.0)
    (path / "OME").mkdir()
    channels = '<Channel Name="Cy3" EmissionWavelength="568"/><Channel Name="Cy5" EmissionWavelength="670"/>'
    images = f'<Image><Pixels PhysicalSizeX="0.5">{channels}</Pixels></Image>' * 2
    (path / "OME" / "METADATA.ome.xml").write_text(
        f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{images}</OME>'
    )
    info = inspect_file(path)
    assert [series.name for series in info.series] == ["0", "1"]
    assert (info.channels, info.series[0].channels[1].wavelength_nm) == (("Cy3", "Cy5"), 670)
    np.testing.assert_array_equal(plane(path, 1, 1, 2, 1), STACK[1, 1, 2] + 1)
    for asked in (568, "568nm", "568 nm", 580, "Cy3", 0):
        assert convert_file(path, Conversion({"nuclei": asked}))[0].channels == "red=;green=;blue=Cy3"
    with pytest.raises(
        UserError, match=r"'600' is no channel within 20 nm of a.zarr, which has .*Cy3 568 nm, 1 Cy5 670 nm"
    ):
        convert_file(path, Conversion({"nuclei": 600}))


def test_fields_of_a_plate_are_scenes_and_are_called_after_their_well(tmp_path):
    import zarr

    path = tmp_path / "plate.zarr"
    wells = ["A/1", "B/2"]
    plate = {"wells": [{"path": well} for well in wells]}
    zarr.create_group(str(path), zarr_format=3).update_attributes({"ome": {"plate": plate}})
    for number, well in enumerate(wells):
        group = zarr.create_group(str(path / well), zarr_format=3)
        group.update_attributes({"ome": {"well": {"images": [{"path": "0"}]}}})
        write_zarr(path / well / "0", STACK + np.uint16(number))
    info = inspect_file(path)
    assert [series.name for series in info.series] == ["A/1/0", "B/2/0"]
    np.testing.assert_array_equal(plane(path, 1), STACK[0, 0, 0] + 1)


def test_axes_of_an_ome_zarr_lie_anywhere_and_unknown_ones_are_refused(tmp_path):  # fault 12
    last = np.ascontiguousarray(STACK[0, :, 0].transpose(1, 2, 0))
    path = write_zarr(tmp_path / "a.zarr", last, axes="yxc")
    assert inspect_file(path).axes == "YXC"
    np.testing.assert_array_equal(plane(path, channel=1), STACK[0, 1, 0], strict=True)
    path = write_zarr(tmp_path / "b.zarr", STACK[0, 0], axes=["angle", "y", "x"])
    with pytest.raises(UserError, match=r"axes QYX \(3, 20, 30\): the meaning of Q is not known"):
        inspect_file(path)


def test_a_folder_of_ome_zarr_is_a_folder_of_images(tmp_path, capfd):
    from cellkit.microscope.folders import list_files

    for name in ("a.zarr", "b/c.ome.zarr"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_zarr(tmp_path / name)
    assert [p.relative_to(tmp_path).as_posix() for p in list_files(tmp_path, (".zarr", ".tif"))] == [
        "a.zarr",
        "b/c.ome.zarr",
    ]
    assert main(["inspect", str(tmp_path)]) == 0
    assert "| a.zarr " in capfd.readouterr().out
    assert main(["inspect", str(tmp_path / "a.zarr"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["reader"] == "ome-zarr"
    out = tmp_path / "out"
    assert main(["convert", str(tmp_path), "-o", str(out), "--nuclei", "DAPI"]) == 0
    assert sorted(p.name for p in out.rglob("*.png")) == ["a_t0.png", "a_t1.png", "b_c_t0.png", "b_c_t1.png"]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_ome_zarr_cut_short_is_refused(tmp_path, version):  # fault 1
    path = write_zarr(tmp_path / "a.zarr", version=version)
    chunks = [p for p in (path / "0").rglob("*") if p.is_file() and p.name[-1].isdecimal()]
    for chunk in chunks:
        chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    with pytest.raises(UserError, match="a.zarr cannot be read as OME-Zarr"):
        plane(path)
    for chunk in chunks:
        chunk.unlink()
    for folder in sorted((p for p in (path / "0").rglob("*") if p.is_dir()), reverse=True):
        folder.rmdir()
    with pytest.raises(UserError, match="no pixels are stored in 0\n.*copy the whole folder"):
        inspect_file(path)
    (path / ("zarr.json" if version == "0.5" else ".zattrs")).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        inspect_file(path)


def test_what_an_ome_zarr_claims_is_checked_first(tmp_path):  # faults 4 and 5
    import zarr

    def claim(name, shape, chunks):
        group = zarr.create_group(str(tmp_path / name), zarr_format=3)
        group.update_attributes({"ome": image_metadata("0.5", axes="yx")})
        group.create_array("0", shape=shape, chunks=chunks, dtype="uint8")
        (tmp_path / name / "0" / "c").mkdir()
        return tmp_path / name

    with pytest.raises(UserError, match="claims 65535 x 65535 px"):
        inspect_file(claim("big.zarr", (65535, 65535), (64, 64)))
    with pytest.raises(UserError, match="chunks of 4,294,836,225 bytes"):
        inspect_file(claim("bomb.zarr", (64, 64), (65535, 65535)))


@pytest.mark.parametrize("where", ["../b.zarr/0", "/etc", "none", ""])
def test_an_ome_zarr_does_not_lead_out_of_itself(tmp_path, where):
    write_zarr(tmp_path / "b.zarr")
    path = write_zarr(tmp_path / "a.zarr", dataset=where)
    with pytest.raises(UserError, match="a.zarr"):
        plane(path)


# ---- damage --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["czi", "lif"])
@pytest.mark.parametrize("kept", [0.999, 0.9, 0.5, 0.1, 0.001])
def test_a_file_cut_short_is_refused_and_never_becomes_fewer_or_blacker_planes(tmp_path, kind, kept):  # fault 1
    path = written(kind, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=rf"^a\.{kind} (cannot be read|is empty)") as caught:
        all_planes(path)
    assert str(caught.value).count("\n") == 1


def test_a_lif_that_claims_too_much_is_refused_before_reading(tmp_path):  # fault 4
    element, block, pixels = lif_image("big", "YX", STACK[0, 0, 0])
    for side, said in (("65535", "65535"), ("999999999", "999999999")):
        huge = element.replace('NumberOfElements="30"', f'NumberOfElements="{side}"')
        with pytest.raises(UserError, match=said):
            inspect_file(write_lif(tmp_path / "a.lif", (huge, block, pixels)))


def expect_planes_or_a_reason(path) -> None:
    try:
        found = all_planes(path)
    except UserError as error:
        assert str(error).count("\n") == 1 and path.name in str(error)
    else:
        assert all(one.ndim == 2 for one in found)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_lif_gives_planes_or_a_reason(tmp_path, data):
    content = bytearray(written("lif", tmp_path).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, 2200))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.lif").write_bytes(content)
    expect_planes_or_a_reason(tmp_path / "a.lif")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["zarr.json", "0/zarr.json"]), st.integers(0, 600), st.integers(32, 126))
def test_a_damaged_ome_zarr_gives_planes_or_a_reason(tmp_path_factory, name, at, value):
    path = write_zarr(tmp_path_factory.mktemp("z") / "a.zarr", STACK[:1, :1, :1])
    content = bytearray((path / name).read_bytes())
    content[at % len(content)] = value
    (path / name).write_bytes(content)
    expect_planes_or_a_reason(path)


# ---- real files ----------------------------------------------------------------------------------------------------
NM = {
    "LED": ("LED555 568 nm", "LED470 517 nm"),
    "LLS": ("LatticeLightsheet 1-T1 642 nm", "LatticeLightsheet 2-T2 561 nm"),
}
MONO = ("Mono", "DAPI 450 nm", "FITC BP 512 nm", "TRITC BP 595 nm")
RGB = ("red", "green", "blue")
POL = ("Bright", *(f"Pol_{k}" for k in (0, 15, 30, 45, 60, 75)))
UNNAMED = ("unnamed",)
REFUSED = "refused"
TABLE = {  # file: (reader, axes, shape, type, channels, pictures) or (REFUSED, what is said)
    "czi/100x100.czi": ("czi", "YX", (10, 10), "uint8", ("C1",), 1),
    "czi/CellDivision_T3_Z5_CH2_X240_Y170.czi": ("czi", "TCZYX", (3, 2, 5, 170, 240), "uint16", NM["LED"], 3),
    "czi/DAPI_GFP.czi": ("czi", "CYX", (2, 640, 640), "uint8", UNNAMED * 2, 1),
    "czi/FOV7_HV110_P0500510000.czi": ("czi", "YX", (512, 512), "uint8", UNNAMED, 1),
    "czi/LLS7_small.czi": ("czi", "TCZYX", (2, 2, 3, 64, 64), "uint16", NM["LLS"], 2),
    "czi/RGB-multichannel.czi": ("czi", "CYXS", (7, 81, 147, 3), "uint8", tuple(f"{n} {c}" for n in POL for c in RGB), 1),
    "czi/nuc_small.czi": ("czi", "YX", (240, 320), "uint8", ("AF568 603 nm",), 1),
    "czi/s_1_t_1_c_1_z_1.czi": ("czi", "YX", (325, 475), "uint16", ("Bright",), 1),
    "lif/LeicaLASX_wavelength-sweep_example.lif": (
        "lif", "CYX", (20, 64, 64), "uint8", tuple(f"emission {nm} nm" for nm in range(550, 741, 10)), 4,
    ),
    "lif/testdata_2channel_xz.lif": (REFUSED, "TCZX (20, 2, 128, 128), 1 'xzy' YCZX (23, 2, 128, 128), 2 'xz' CZX (2, 512, 512)"),
    "nd2/cluster.nd2": ("nd2", "TZCYX", (3, 10, 2, 31, 38), "uint16", ("5-FAM/pH 9.0 525 nm", "FM 4-64/2% CHAPS 700 nm"), 3),
    "nd2/example-cerevisiae.nd2": ("nd2", "CYX", (2, 256, 256), "uint16", ("DIC", "FITC BP 512 nm"), 1),
    "nd2/example-multichannel.nd2": ("nd2", "CYX", (4, 256, 256), "uint16", MONO, 1),
    "nd2/example-pbmc.nd2": ("nd2", "CYX", (4, 256, 256), "uint16", MONO, 1),
    "nd2/example-timelapse.nd2": ("nd2", "TYX", (53, 64, 64), "uint16", ("GFP 488 nm 512 nm",), 53),
    "nd2/example-zstack.nd2": ("nd2", "ZYX", (11, 128, 128), "uint16", ("FITC BP 512 nm",), 1),
    "ometiff/FOV7_HV110_P0500510000.ome.tiff": ("ome-tiff", "YX", (512, 512), "uint8", UNNAMED, 1),
    "ometiff/ome-types_tiny.ome.tiff": ("ome-tiff", "CYX", (2, 6, 6), "uint8", UNNAMED * 2, 1),
    "tiff/5channel.tif": ("imagej-tiff", "CYX", (5, 64, 64), "uint8", UNNAMED * 5, 1),
    "tiff/CH3_Fluorescence_8bit.tif": ("imagej-tiff", "CYX", (3, 272, 275), "uint8", UNNAMED * 3, 1),
    "tiff/NikonTIF.tif": ("tiff", "YXS", (731, 805, 3), "uint8", RGB, 1),
    "tiff/ebimage_cells_4frames.tif": (REFUSED, "has axes IYX (4, 510, 510)"),
    "tiff/ebimage_nuclei_4frames.tif": (REFUSED, "has axes IYX (4, 510, 510)"),
    "tiff/hela-cells.tif": ("imagej-tiff", "YXS", (512, 672, 3), "uint16", RGB, 1),
    "tiff/piximi_8b_2c_actin-nuclei.tif": ("imagej-tiff", "CYX", (2, 450, 450), "uint8", UNNAMED * 2, 1),
    "tiff/piximi_8b_3c_composite_FluorescentCells.tif": ("imagej-tiff", "CYX", (3, 512, 512), "uint8", UNNAMED * 3, 1),
}  # fmt: skip
UM_PER_PX = {"czi/CellDivision_T3_Z5_CH2_X240_Y170.czi": 0.0906, "czi/LLS7_small.czi": 0.145, "czi/nuc_small.czi": 0.4572,
             "lif/LeicaLASX_wavelength-sweep_example.lif": 0.1048, "nd2/cluster.nd2": 0.1678, "nd2/example-timelapse.nd2": 0.325,
             "tiff/hela-cells.tif": 0.0515}  # fmt: skip


@pytest.fixture(scope="session")
def raw(data_folder) -> Path:
    return data_folder / "raw_formats"


@pytest.mark.realdata
def test_the_table_names_every_raw_file(raw):
    there = {p.relative_to(raw).as_posix() for p in raw.rglob("*.*") if p.is_file()} - {"README.md"}
    assert {name for name in there if "/expected/" not in name} == set(TABLE)
    assert len(TABLE) == 26


@pytest.mark.realdata
@pytest.mark.parametrize("name", TABLE)
def test_each_raw_file_converts_or_is_refused_rightly(raw, name, capfd):
    code = main(["inspect", str(raw / name), "--json"])
    out, err = capfd.readouterr()
    if TABLE[name][0] == REFUSED:
        assert (code, out, len(err.splitlines())) == (2, "", 2)
        assert TABLE[name][1] in err and "axes: T" in err
        return
    told = json.loads(out)
    reader, axes, shape, dtype, channels, pictures = TABLE[name]
    info = inspect_file(raw / name)
    assert (code, told["reader"], told["axes"], told["shape"], told["dtype"]) == (0, reader, axes, list(shape), dtype)
    assert tuple(channel.text for channel in info.first.channels) == channels
    assert told["images"] == pictures
    if name in UM_PER_PX:
        assert told["um_per_px"] == pytest.approx(UM_PER_PX[name], abs=1e-4)
    made = convert_file(
        raw / name, Conversion({"nuclei": "channel 0", "cytoplasm": f"channel {min(1, len(channels) - 1)}"})
    )
    assert len(made) == pictures
    assert {one.image.shape for one in made} == {(shape[axes.index("Y")], shape[axes.index("X")], 3)}
    if "tiny" not in name:
        assert all(one.image.any() for one in made)


@pytest.mark.realdata
def test_opposite_channel_orders_become_the_same_colours_by_config_alone(raw):
    (a,) = convert_file(raw / "czi/DAPI_GFP.czi", Conversion({"nuclei": 0, "cytoplasm": 1}))
    (b,) = convert_file(raw / "tiff/piximi_8b_2c_actin-nuclei.tif", Conversion({"nuclei": 1, "cytoplasm": 0}))
    for made, nuclei, name in ((a, 0, "czi/DAPI_GFP.czi"), (b, 1, "tiff/piximi_8b_2c_actin-nuclei.tif")):
        with open_file(raw / name) as opened:
            planes = [opened.plane(0, 0, 0, c).astype(float) for c in (nuclei, 1 - nuclei)]
        red, green, blue = (made.image[..., k].astype(float) for k in range(3))
        assert not red.any()
        for colour, source in ((blue, planes[0]), (green, planes[1])):
            low, high = np.percentile(source, (0.3, 99.8))
            np.testing.assert_allclose(colour, np.clip((source - low) / (high - low), 0, 1) * 255, atol=0.51)


@pytest.mark.realdata
def test_a_czi_and_its_ome_tiff_twin_are_equal_pixel_by_pixel(raw):
    twins = [raw / "czi/FOV7_HV110_P0500510000.czi", raw / "ometiff/FOV7_HV110_P0500510000.ome.tiff"]
    np.testing.assert_array_equal(plane(twins[0]), plane(twins[1]), strict=True)
    made = [convert_file(path, Conversion({"nuclei": 0}))[0].image for path in twins]
    np.testing.assert_array_equal(made[0], made[1], strict=True)


@pytest.mark.realdata
def test_xz_planes_of_a_lif_are_read_where_that_is_stated(raw):
    path, expected = raw / "lif/testdata_2channel_xz.lif", raw / "lif/expected"
    np.testing.assert_array_equal(plane(path, axes="TCYX"), tifffile.imread(expected / "xz_c0_t0.tif"), strict=True)
    np.testing.assert_array_equal(
        plane(path, time=8, channel=1, axes="TCYX"), tifffile.imread(expected / "xz_c1_t8.tif"), strict=True
    )
    info = inspect_file(path, "TCYX")
    assert [len(series.channels) for series in info.series] == [2, 2, 2]
    assert [bool(series.problem) for series in info.series] == [False, False, True]
    assert "one letter for each of the 3 axes" in info.series[2].remedy
    assert plane(path, scene=2, channel=1, axes="CYX").shape == (512, 512)


@pytest.mark.realdata
def test_known_pixels(raw):
    np.testing.assert_array_equal(plane(raw / "czi/100x100.czi"), np.arange(100, dtype=np.uint8).reshape(10, 10))
    assert plane(raw / "czi/nuc_small.czi").max() == 34
    sweep = raw / "lif/LeicaLASX_wavelength-sweep_example.lif"
    assert [series.shape for series in inspect_file(sweep).series] == [(20, 64, 64), (15, 64, 64), (2, 10, 11, 64, 64)]
    (made,) = convert_file(raw / "czi/nuc_small.czi", Conversion({"nuclei": 603}))
    assert "AF568" in made.channels


@pytest.mark.realdata
@pytest.mark.parametrize("asked", [568, "568nm", "568 nm", 560, "LED555"])
def test_a_channel_of_a_real_file_by_its_wavelength(raw, asked):
    path = raw / "czi/CellDivision_T3_Z5_CH2_X240_Y170.czi"
    assert {one.channels for one in convert_file(path, Conversion({"nuclei": asked}))} == {"red=;green=;blue=LED555"}
    with pytest.raises(UserError, match=r"within 20 nm of CellDivision.*0 LED555 568 nm, 1 LED470 517 nm"):
        convert_file(path, Conversion({"nuclei": 650}))


@pytest.mark.realdata
@pytest.mark.parametrize("name", [name for name in TABLE if name.startswith(("czi", "lif", "nd2"))])
@pytest.mark.parametrize("kept", [0.95, 0.6, 0.2, 0.01])
def test_real_files_cut_short_are_refused(raw, tmp_path, name, kept):  # fault 1
    path = tmp_path / Path(name).name
    content = (raw / name).read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    axes = "TCYX" if name.endswith("_xz.lif") else None
    with pytest.raises(UserError, match=f"^{re.escape(path.name)}"):
        all_planes(path, axes)


@pytest.mark.realdata
def test_a_damaged_nd2_gives_planes_or_a_reason(raw, tmp_path):
    content, random = (raw / "nd2/cluster.nd2").read_bytes(), np.random.default_rng(0)
    for number in range(12):
        damaged = bytearray(content)
        for at in random.integers(0, len(content) if number % 2 else 6000, 40):
            damaged[at] = random.integers(256)
        (tmp_path / "a.nd2").write_bytes(damaged)
        expect_planes_or_a_reason(tmp_path / "a.nd2")


@pytest.mark.realdata
def test_the_table_in_the_documentation_is_what_inspect_prints(raw):
    rows = [row for row in list_microscope_files(raw) if "/expected/" not in row["file"]]
    text = (ROOT / "data" / "formats.md").read_text(encoding="utf-8")
    assert files_to_text(rows) in text, "cellkit inspect raw_formats, without lif/expected"


@pytest.mark.realdata
def test_inspecting_the_folder_lists_a_row_per_file(raw):
    rows = list_microscope_files(raw)
    assert {row["file"] for row in rows} >= set(TABLE)
    lines = files_to_text(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.count("|") for line in lines} == {9}
    assert sum("refused: " in line for line in lines) == 3
    assert len(files_to_text(rows, most=5).splitlines()) == 8


# ---- what is not there, and what is there besides ------------------------------------------------------------------
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_chunks_that_are_not_stored_are_said_with_their_channel(tmp_path, version):
    path = write_zarr(tmp_path / "a.zarr", STACK + 1, version)
    assert inspect_file(path).first.notes == ()
    chunks = path / "0" / "c" if version == "0.5" else path / "0"
    for place in [p for p in chunks.rglob("*") if p.is_file() and not p.name.startswith(".")]:
        at = place.relative_to(chunks).as_posix().replace(".", "/").split("/")
        if at[1] == "1":
            place.unlink()
    (note,) = inspect_file(path).first.notes
    assert note.endswith("are not stored: they count as 0; none of channel 1")


def test_images_that_the_metadata_of_a_zarr_does_not_lead_to_are_named(tmp_path):
    import zarr

    path = write_zarr(tmp_path / "a.zarr", version="0.4")
    root = zarr.open_group(str(path))
    root.create_group("extra").attrs["multiscales"] = []
    root.attrs["multiscales"] = [*root.attrs["multiscales"], {"name": "second", "datasets": [{"path": "1"}]}]
    first, second = inspect_file(path).left_out
    assert "image 'extra' is not listed" in first and "image second is not the first" in second


@pytest.mark.parametrize(
    ("axes", "scale", "unit", "um"),
    [
        ("yxc", [0.25, 0.25, 9], "micrometer", 0.25), ("cyx", [1, 500, 500], "nanometer", 0.5),
        ("cyx", [1, 0.5, 0.25], "micrometer", None), ("cyx", [1, 0, 0], "micrometer", None), ("cyx", [1, 1], "micrometer", None),
        ("cyx", [1, "0,5", "0,5"], "micrometer", None), ("cyx", [1, 1, 1], "pixel", None),
    ],
)  # fmt: skip
def test_the_scale_of_a_zarr_is_that_of_its_columns_and_rows(axes, scale, unit, um):
    told = [{"name": a, **({"unit": unit} if a in "yx" else {})} for a in axes]
    scales = {"datasets": [{"coordinateTransformations": [{"type": "scale", "scale": scale}]}]}
    said = []
    found = _zarr_um_per_px(scales, told, said)
    assert np.isnan(found) and bool(said) == (unit != "pixel") if um is None else found == um and not said


def test_a_further_part_of_a_czi_is_refused(tmp_path):
    path = write_czi(tmp_path / "a.czi")
    content = bytearray(path.read_bytes())
    content[80:84] = (2).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError, match="part 3 of a CZI of several files"):
        inspect_file(path)
