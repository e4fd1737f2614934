"""Faults of places, disks and links, and of files that must not be written over; the table is in test_faults.py."""

import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tifffile
from fault_cases import CELL, CELLS, GREY, IMAGE, RNG, coco_file, config, refused, save, table  # noqa: F401

from cellkit.errors import UserError
from cellkit.formats.label_images import read_labels
from cellkit.microscope.open import inspect_file
from cellkit.modules import load

# ---- places --------------------------------------------------------------------------------------------------------


def test_row_51_the_output_folder_vanishes_half_way(said, tmp_path, monkeypatch):
    from cellkit.microscope import batch

    for k in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "in" / f"{k}.tif", GREY)
    made = []
    encode = batch.png_parts

    def then_gone(*given):
        made.append(1)
        if len(made) == 2:
            shutil.rmtree(tmp_path / "out")
        return encode(*given)

    monkeypatch.setattr(batch, "png_parts", then_gone)
    command = ["convert", tmp_path / "in", "-o", tmp_path / "out", "--nuclei", 0]
    code, out, err = said(*command)
    assert (code, out) == (2, "") and "1.png cannot be written: No such file or directory" in err
    assert said(*command)[0] == 0 and len(list((tmp_path / "out").glob("*.png"))) == 3


@pytest.mark.parametrize("command", ["convert", "predict", "labels", "coco", "submit"])
def test_row_51_a_place_that_is_a_file(said, tmp_path, command):
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    truth = coco_file(tmp_path / "t.json", CELL)
    (tmp_path / "file").write_text("mine")
    inside = tmp_path / "file" / "out"
    given = {
        "convert": [tmp_path / "a.tif", "--nuclei", 0], "predict": ["threshold", tmp_path / "a.tif", "--nuclei", 0],
        "labels": [truth], "coco": [truth], "submit": [truth, "--profile", "sartorius"],
    }[command]  # fmt: skip
    code, out, err = said(command, *given, "-o", inside)
    assert (code, out) == (2, "") and str(tmp_path / "file") in err and "Traceback" not in err
    assert (tmp_path / "file").read_text() == "mine"


OF_DISK = {"ENOSPC": "the disk is full", "EDQUOT": "the quota of disk space is used up", "EROFS": "is read-only"}


@pytest.mark.parametrize("fault", OF_DISK)
@pytest.mark.parametrize("command", ["convert", "predict", "predict --labels", "labels", "coco", "submit", "run"])
def test_row_51_a_disk_without_room(said, tmp_path, monkeypatch, command, fault):
    """Said at once: which place, and that the command can be repeated; what was there before stays."""
    import errno

    tifffile.imwrite(tmp_path / "a.tif", GREY)
    truth = coco_file(tmp_path / "t.json", CELL)
    (tmp_path / "c.yaml").write_text("name: x\n")
    name, *more = command.split()
    out = tmp_path / ("out" if name in ("convert", "labels", "run") else "out.json")
    given = {
        "convert": [tmp_path / "a.tif", "--nuclei", 0], "predict": ["threshold", tmp_path / "a.tif", "--nuclei", 0],
        "labels": [truth], "coco": [truth], "submit": [truth, "--profile", "sartorius"], "run": [tmp_path / "c.yaml"],
    }[name]  # fmt: skip
    more += [tmp_path / "tifs"] if more else []

    def full(handle):
        raise OSError(getattr(errno, fault), os.strerror(getattr(errno, fault)))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        if name == "convert":
            patched.setattr(os, "replace", lambda *_: full(0))
        code, told, err = said(name, *given, "--run" if name == "run" else "-o", out, *more)
    assert (code, told) == (2, "") and str(tmp_path) in err and "repeat the command" in err, err
    assert name == "convert" or OF_DISK[fault] in err
    assert not out.is_file() and "skipped" not in err
    if name != "run":
        assert said(name, *given, "-o", out, *more)[0] == 0


def test_row_51_a_limit_met_by_real_files_and_by_standard_output(tmp_path):
    """No stand-in: a file that may not grow past a limit, and an output that is full."""
    truth = coco_file(tmp_path / "t.json", CELL)
    code = """
        import resource, sys
        from cellkit.commands.main import main
        from cellkit.models.training_state import save_tensors
        import torch
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        try:
            save_tensors("w.safetensors", {"w": torch.zeros(1000)}, {})
        except OSError as error:
            print(error.errno, error.filename, file=sys.stderr)
        sys.exit(main(["coco", "t.json", "-o", "o.json"]))
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True)
    wanted = ["27 w.safetensors", "'o.json': a file became larger than the file system or a limit allows"]
    assert (ended.returncode, ended.stderr.splitlines()[:2]) == (2, wanted), ended.stderr
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            ended = subprocess.run(
                [sys.executable, "-m", "cellkit", "inspect", str(truth)], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert (ended.returncode, ended.stderr.splitlines()[0]) == (2, "'standard output': the disk is full")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that nobody can write to")
@pytest.mark.parametrize("command", ["convert", "predict", "labels", "coco", "submit", "run"])
def test_row_51_a_folder_that_nobody_can_write_to(said, tmp_path, command):
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    truth = coco_file(tmp_path / "t.json", CELL)
    (tmp_path / "c.yaml").write_text("name: x\n")
    out = Path("/proc/cellkit") if command in ("convert", "labels", "run") else Path("/proc/cellkit/out.json")
    given = {
        "convert": [tmp_path / "a.tif", "--nuclei", 0, "-o", out],
        "predict": ["threshold", tmp_path / "a.tif", "--nuclei", 0, "-o", out], "labels": [truth, "-o", out],
        "coco": [truth, "-o", out], "submit": [truth, "--profile", "sartorius", "-o", out],
        "run": [tmp_path / "c.yaml", "--run", out],
    }[command]  # fmt: skip
    code, told, err = said(command, *given)
    assert (code, told) == (2, "") and "/proc/cellkit" in err and "Traceback" not in err, err


def test_row_52_links_out_of_a_named_folder(said, refused, tmp_path):
    secret, folder = tmp_path / "secret.tif", tmp_path / "in"
    folder.mkdir()
    tifffile.imwrite(secret, GREY)
    (folder / "out.tif").symlink_to(secret)
    told = refused("convert", folder, "-o", tmp_path / "out", "--nuclei", 0)
    assert "out.tif is a link that leads out of" in told and not list(tmp_path.rglob("*.png"))
    tifffile.imwrite(folder / "a.tif", GREY)
    (folder / "b.tif").symlink_to(folder / "a.tif")
    for command, result in (("convert", tmp_path / "out"), ("predict", tmp_path / "found.json")):
        model = ["threshold"] if command == "predict" else []
        code, out, err = said(command, *model, folder, "-o", result, "--nuclei", 0)
        assert code == 3 and "out.tif: is a link that leads out of" in err, (out, err)
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a.png"], "b is a again"
    assert said("convert", folder / "out.tif", "-o", tmp_path / "named", "--nuclei", 0)[0] == 0, "named itself"


def test_row_52_masks_and_tables_that_are_links_out_of_the_folder(tmp_path):
    save(tmp_path / "in" / "x" / "images" / "x.png")
    outside = save(tmp_path / "secret.png", (CELLS == 1).astype(np.uint8))
    (tmp_path / "in" / "x" / "masks").mkdir()
    (tmp_path / "in" / "x" / "masks" / "1.png").symlink_to(outside)
    (item,) = load("source", "dsb2018").read(tmp_path / "in", config("dsb2018"))
    with pytest.raises(UserError, match="1.png is a link that leads out of"):
        item.load()
    (tmp_path / "secret.csv").write_text("file,label,class,id,modality\n")
    for source, place in (("microscope", "truth/classes.csv"), ("dsb2018", "index.csv")):
        table = tmp_path / source / place
        table.parent.mkdir(parents=True)
        table.symlink_to(tmp_path / "secret.csv")
        with pytest.raises(UserError, match="csv is a link that leads out of"):
            list(load("source", source).read(tmp_path / source, config(source)))


# ---- what is there is not written over -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "tif"])
@pytest.mark.parametrize("kind", ["colour", "8 bit", "16 bit"])
def test_labels_are_never_written_over_pictures(said, tmp_path, form, kind):
    pixels = {
        "colour": RNG.integers(0, 255, (40, 50, 3), np.uint8),
        "8 bit": (GREY // 16).astype(np.uint8),
        "16 bit": GREY,
    }
    picture = tmp_path / f"a.{form}"
    save(picture, pixels[kind]) if form == "png" else tifffile.imwrite(picture, pixels[kind])
    before = picture.read_bytes()
    truth = coco_file(tmp_path / "t.json", CELL)
    code, _, err = said("labels", truth, "-o", tmp_path, "--format", form)
    assert code == 2 and "no label image" in err and picture.read_bytes() == before
    assert said("labels", truth, "-o", tmp_path, "--format", form, "--suffix", "_masks")[0] == 0
    assert said("labels", truth, "-o", tmp_path, "--format", form, "--suffix", "_masks")[0] == 0, "labels are replaced"
    assert read_labels(tmp_path / f"a_masks.{form}").max() == 1 and picture.read_bytes() == before


def test_predicted_labels_are_never_written_over_the_raw_files(said, tmp_path):
    (tmp_path / "raw").mkdir()
    tifffile.imwrite(tmp_path / "raw" / "a.tif", GREY)
    before = (tmp_path / "raw" / "a.tif").read_bytes()
    assert said("convert", tmp_path / "raw", "-o", tmp_path / "png", "--nuclei", 0)[0] == 0
    command = ["predict", "threshold", tmp_path / "png", "-o", tmp_path / "found.json", "--labels"]
    code, _, err = said(*command, tmp_path / "raw")
    assert code == 2 and "a.tif is there and is no label image" in err
    assert (tmp_path / "raw" / "a.tif").read_bytes() == before and not (tmp_path / "found.json").exists()
    assert said(*command, tmp_path / "labels")[0] == said(*command, tmp_path / "labels")[0] == 0


def test_rois_saved_by_imagej_are_not_written_over(said, tmp_path):
    import zipfile

    truth = coco_file(tmp_path / "t.json", CELL)
    command = ["labels", truth, "-o", tmp_path / "rois", "--format", "roi"]
    assert said(*command)[0] == 0 and said(*command)[0] == 0, "its own it replaces"
    path = tmp_path / "rois" / "a_rois.zip"
    with zipfile.ZipFile(path) as ours:
        members = {name: ours.read(name) for name in ours.namelist()}
    with zipfile.ZipFile(path, "w") as theirs:  # ImageJ leaves no comment
        for name, content in members.items():
            theirs.writestr(name, content)
    before = path.read_bytes()
    code, _, err = said(*command)
    assert code == 2 and "a_rois.zip was saved by ImageJ and may hold corrections" in err
    assert path.read_bytes() == before


def test_two_images_of_one_picture_do_not_share_a_cellpose_file(refused, tmp_path):
    save(tmp_path / "pictures" / "a.png", GREY[:3, :4])
    images = [IMAGE | {"id": k, "file_name": f"{folder}/a.png"} for k, folder in ((1, "x"), (2, "y"))]
    told = {"images": images, "annotations": [CELL], "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "t.json").write_text(json.dumps(told))
    where = ["-o", tmp_path / "pictures", "--images", tmp_path / "pictures"]
    assert "two files of the image 'a'" in refused("labels", tmp_path / "t.json", "--format", "seg", *where)
    assert not list((tmp_path / "pictures").glob("*.npy"))


@pytest.mark.parametrize("filters", [[{"id": "vlen-utf8"}, {"id": "pickle"}], [{"id": "pickle"}]])
def test_a_zarr_of_pickles_is_refused_by_its_header(tmp_path, filters):
    array = {
        "zarr_format": 2, "shape": [4, 4], "chunks": [4, 4], "dtype": "|O", "compressor": None, "filters": filters,
        "fill_value": "", "order": "C",
    }  # fmt: skip
    space = [{"name": axis, "type": "space"} for axis in "yx"]
    (tmp_path / "a.zarr" / "0").mkdir(parents=True)
    (tmp_path / "a.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    scales = {"multiscales": [{"version": "0.4", "axes": space, "datasets": [{"path": "0"}]}]}
    (tmp_path / "a.zarr" / ".zattrs").write_text(json.dumps(scales))
    (tmp_path / "a.zarr" / "0" / ".zarray").write_text(json.dumps(array))
    (tmp_path / "a.zarr" / "0" / "0.0").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(UserError, match="a.zarr (holds Python objects|cannot be read as OME-Zarr)"):
        inspect_file(tmp_path / "a.zarr")


@pytest.mark.parametrize("body", [b"c_codecs\nencode\n(I5\nS'latin1'\ntR.", b"c_codecs\nencode\n(NS'latin1'\ntR."])
def test_a_seg_file_that_encodes_what_is_no_text_is_refused(refused, tmp_path, body):
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header = header.ljust(117) + b"\n"
    (tmp_path / "a_seg.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body)
    told = refused("coco", tmp_path / "a_seg.npy", "-o", tmp_path / "c.json")
    assert "a_seg.npy" in told and "holds bytes encoded as" in told


def test_a_roi_zip_of_an_image_without_end_is_refused(refused, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a_rois.zip", "w") as archive:
        archive.comment = json.dumps({"cellkit.shape": "262144,262144", "cellkit.classes": ""}).encode()
    assert "an image of 262144,262144 px" in refused("coco", tmp_path / "a_rois.zip", "-o", tmp_path / "c.json")
