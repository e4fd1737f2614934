"""OME-Zarr: axes, levels, channels and wells, written here."""

import json

import numpy as np
import pytest
from conftest import convert_file
from stack_cases import STACK, image_metadata, plane, write_zarr

from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.microscope.convert import Conversion
from cellkit.microscope.open import inspect_file

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
