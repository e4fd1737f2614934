"""Real microscope files where the data folder is; damaged ones, and ones that are not there."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import convert_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stack_cases import ROOT, STACK, all_planes, lif_image, plane, write_czi, write_lif, write_zarr, written

from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.microscope.convert import Conversion
from cellkit.microscope.ome_zarr import _zarr_um_per_px
from cellkit.microscope.open import inspect_file, open_file
from cellkit.sources.inspection import files_to_text, list_microscope_files

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
