"""CZI, LIF, ND2 and OME-Zarr: written here where a writer exists, real ones where the data folder is; damaged ones refused."""

import re
import subprocess
import sys
import tomllib
from itertools import product

import numpy as np
import pytest
import tifffile
from conftest import convert_file
from stack_cases import ROOT, STACK, plane, written

from cellkit.commands.machine_report import check_formats
from cellkit.commands.machine_report import report_text as tell_doctor
from cellkit.errors import UserError
from cellkit.microscope.convert import Conversion
from cellkit.microscope.open import READER_OF, READERS, inspect_file

LIBRARY_SUFFIXES = [suffix for suffix, reader in READER_OF.items() if reader.module]


# ---- writers -------------------------------------------------------------------------------------------------------

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
