"""Every parser of cellkit with good files to begin from, for `chaos_inputs.py`: what is mangled, and how it is read."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from cellkit.errors import UserError

ROOT = Path(__file__).parents[1]
for place in ("tests", "tests/formats", "tests/microscope"):
    sys.path.append(str(ROOT / place))

DATA = Path(os.environ.get("CELLKIT_DATA") or ROOT.parent / "shared" / "data")
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 4000, (24, 32)).astype(np.uint16)
LABELS = np.zeros((24, 32), np.uint8)
LABELS[3:9, 4:12], LABELS[12:20, 10:25] = 1, 2
MOST_PLANES = 4
MOST_ND2_BYTES = 700_000  # of real files, as ND2 cannot be written here


@dataclass(frozen=True)
class Parser:
    """A parser and what it is given.

    Attributes
    ----------
    files : mapping
        Name in the folder -> good contents; one file at a time is mangled.
    read : callable
        (folder) -> anything: reads the file as a command would, raises UserError for what it refuses.
    form : str
        How it is mangled beside byte by byte: "json", "text", "zip" (its members), "gzip", "png" (its
        chunks) or "bytes".
    beside : mapping
        Files that stay as they are.
    """

    files: Mapping[str, list[bytes]]
    read: Callable[[Path], object]
    form: str = "bytes"
    beside: Mapping[str, bytes] = field(default_factory=dict)


def encoded(pixels: np.ndarray, form: str, **how) -> bytes:
    """Return a picture as the bytes of a file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **how)
    return out.getvalue()


def tiff(pixels: np.ndarray, **how) -> bytes:
    """Return a TIFF as bytes."""
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **how)
    return out.getvalue()


def zipped(members: Mapping[str, bytes]) -> bytes:
    """Return a ZIP as bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def below(folder: Path) -> dict[str, list[bytes]]:
    """Return the files below a folder by name."""
    return {p.relative_to(folder).as_posix(): [p.read_bytes()] for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- how files are read ----------------------------------------------------------------------------------------------
def picture(name: str) -> Callable[[Path], object]:
    """Read a microscope file: its header, then the first planes and a picture made of each."""

    def read(folder: Path) -> None:
        from cellkit.microscope.convert import Conversion, convert_frame
        from cellkit.microscope.open import inspect_file, open_file

        inspect_file(folder / name)
        with open_file(folder / name) as opened:
            for scene, time, suffix in list(opened.info.frames())[:MOST_PLANES]:
                convert_frame(opened, scene, time, Conversion({"nuclei": 0}), suffix)

    return read


def source(kind: str, classes: tuple[str, ...] = ("cell",)) -> Callable[[Path], object]:
    """List a data set and load every image of it."""

    def read(folder: Path) -> None:
        from cellkit.config.sections import ChannelsConfig, ConvertConfig
        from cellkit.modules import load

        config = ConvertConfig(source=kind, classes=classes, channels=ChannelsConfig(nuclei=0))
        refused = None
        for item in load("source", kind).read(folder, config):
            try:
                item.load()
            except UserError as error:
                refused = error
        if refused:
            raise refused

    return read


def side(name: str, **how) -> Callable[[Path], object]:
    """Read cells as `cellkit score` does."""

    def read(folder: Path) -> None:
        from cellkit.formats.any import read_side

        read_side(folder / name, **how)

    return read


def called(place: str, name: str, *more, **how) -> Callable[[Path], object]:
    """Call a function of the package with a file."""
    module, _, function = place.rpartition(".")

    def read(folder: Path) -> None:
        from importlib import import_module

        getattr(import_module(module), function)(folder / name, *more, **how)

    return read


def submission(folder: Path) -> None:
    """Read a table of a competition as `cellkit check-submission` and `cellkit score` do."""
    from cellkit.formats.any import read_side
    from cellkit.formats.submission_check import check_submission

    shapes = {"a": (6, 7), "b": (6, 7)}
    check_submission(folder / "a.csv", "sartorius", shapes)
    read_side(folder / "a.csv", profile="sartorius", shapes=shapes)


def results(folder: Path) -> None:
    """Read a list of COCO results for a COCO file."""
    from cellkit.formats.any import read_side

    read_side(folder / "a.json", of=read_side(folder / "truth.json"), common=True)


def run_folder(folder: Path) -> None:
    """Read a run folder's manifest as `cellkit check` and the notebooks do."""
    from cellkit.run.folder import Run
    from cellkit.run.stale import check

    run = Run(folder / "run")
    run.stages()
    run.find("records")
    check(folder / "run", ROOT / "configs" / "demo.yaml")


def measured(folder: Path) -> None:
    """Read a table of measurements as `cellkit labels --measured` does."""
    from cellkit.cells.dataset import CellDataset
    from cellkit.cells.instances import Instances
    from cellkit.cells.records import ImageRecord
    from cellkit.formats.measured import read_measured

    record = ImageRecord("a", "images/a.png", 24, 32)
    images = CellDataset([record], [Instances.from_labels(LABELS, [1, 2])], ("HEK", "N2a"), folder, [1])
    read_measured(folder / "a.csv", images)


def unpacked(name: str) -> Callable[[Path], object]:
    """Unpack an archive."""

    def read(folder: Path) -> None:
        from cellkit.fetch.archives import unpack

        with tempfile.TemporaryDirectory(dir=folder) as out:
            unpack(folder / name, Path(out) / "out", 10**8)

    return read


def package(folder: Path) -> None:
    """Take in a package of bioimage.io."""
    from cellkit.fetch.packages import weights_of_package

    weights_of_package(folder / "a.zip")


# ---- every parser ----------------------------------------------------------------------------------------------------
NAMES = {
    "pictures": ("tiff", "png", "jpeg", "lif", "czi", "zarr 0.4", "zarr 0.5", "nd2"),
    "labels": ("label tiff", "label png", "coco", "results", "submission", "geojson", "roi", "roi zip", "seg"),
    "sets": ("labelme", "voc", "box csv", "coco set", "sartorius"),
    "others": ("yaml", "notebook", "records", "cells table", "manifest", "zip", "tar"),
    "weights": ("safetensors", "card", "torch file", "package"),
}


def names() -> list[str]:
    """Return the names of all parsers; ND2 only where there are real files, as it cannot be written here."""
    real = any(DATA.glob("raw_formats/nd2/*.nd2"))
    return [name for group in NAMES.values() for name in group if name != "nd2" or real]


def parser_of(name: str, folder: Path) -> Parser:
    """Return a parser; `folder` is written into."""
    folder.mkdir(parents=True, exist_ok=True)
    group = next(group for group, some in NAMES.items() if name in some)
    return {"pictures": pictures, "labels": labels, "sets": sets, "others": others, "weights": of_weights}[group](
        folder
    )[name]


def pictures(folder: Path) -> dict[str, Parser]:
    """Return the parsers of microscope files."""
    from stack_cases import STACK, write_czi, write_lif, write_zarr
    from stack_cases import lif_image as lif

    small = STACK[:1, :, :2, :16, :20]
    plain = [
        tiff(GREY),
        tiff(GREY, compression="zlib", predictor=True),
        tiff(small, imagej=True),
        tiff(GREY, bigtiff=True),
    ]
    plain += [
        tiff(small, metadata={"axes": "TCZYX", "PhysicalSizeX": 0.5}, ome=True),
        tiff(GREY, tile=(16, 16), byteorder=">"),
    ]
    colour = RNG.integers(0, 255, (24, 32, 3), np.uint8)
    png = [encoded(x, "png") for x in (GREY, colour, LABELS)]
    zarrs = {version: below(write_zarr(folder / f"{version}.zarr", small, version)) for version in ("0.4", "0.5")}
    found = {
        "tiff": Parser({"a.tif": plain}, picture("a.tif")),
        "png": Parser({"a.png": png}, picture("a.png"), "png"),
        "jpeg": Parser({"a.jpg": [encoded(colour, "jpeg")]}, picture("a.jpg")),
        "lif": Parser(
            {"a.lif": [write_lif(folder / "a.lif", lif("a", "TCZYX", small)).read_bytes()]}, picture("a.lif")
        ),
        "czi": Parser({"a.czi": [write_czi(folder / "a.czi", stack=small).read_bytes()]}, picture("a.czi")),
    }
    for version, files in zarrs.items():
        files = {f"a.zarr/{name}": content for name, content in files.items()}
        found[f"zarr {version}"] = Parser(files, picture("a.zarr"))
    nd2 = [p.read_bytes() for p in sorted(DATA.glob("raw_formats/nd2/*.nd2")) if p.stat().st_size < MOST_ND2_BYTES]
    return found | ({"nd2": Parser({"a.nd2": nd2}, picture("a.nd2"))} if nd2 else {})


def labels(folder: Path) -> dict[str, Parser]:
    """Return the parsers of cells."""
    from test_fuzz import good_coco, good_csv, good_geojson, good_results

    from cellkit.cells.instances import Instances
    from cellkit.formats.roi import write_rois
    from cellkit.formats.seg import write_seg

    coco = json.dumps(good_coco()).encode()
    cells = Instances.from_labels(LABELS, [1, 2])
    rois = write_rois(folder / "a_rois.zip", cells, ("HEK", "N2a")).read_bytes()
    with zipfile.ZipFile(io.BytesIO(rois)) as archive:
        roi = [archive.read(name) for name in archive.namelist()]
    write_seg(folder / "a_seg.npy", np.zeros((24, 32, 3), np.uint8), cells, ("HEK", "N2a"))
    seg = (folder / "a_seg.npy").read_bytes()
    place = "cellkit.formats.label_images.read_labels"
    return {
        "label tiff": Parser({"a.tif": [tiff(LABELS), tiff(LABELS, compression="zlib")]}, called(place, "a.tif")),
        "label png": Parser({"a.png": [encoded(LABELS, "png")]}, called(place, "a.png"), "png"),
        "coco": Parser({"a.json": [coco]}, side("a.json"), "json"),
        "results": Parser({"a.json": [json.dumps(good_results()).encode()]}, results, "json", {"truth.json": coco}),
        "submission": Parser({"a.csv": [good_csv().encode()]}, submission, "text"),
        "geojson": Parser({"a.geojson": [good_geojson().encode()]}, side("a.geojson"), "json"),
        "roi": Parser({"a.roi": roi}, called("cellkit.formats.roi.read_rois", "a.roi", (24, 32))),
        "roi zip": Parser({"a_rois.zip": [rois]}, side("a_rois.zip"), "zip"),
        "seg": Parser({"a_seg.npy": [seg]}, called("cellkit.formats.seg.read_seg", "a_seg.npy")),
    }


def sets(folder: Path) -> dict[str, Parser]:
    """Return the parsers of data sets."""
    png = encoded(GREY, "png")
    grey = encoded((GREY // 16).astype(np.uint8), "png")
    shapes = [{"label": "cell", "shape_type": "polygon", "points": [[1, 1], [9, 1], [9, 8]], "group_id": None, "flags": {}},
              {"label": "cell", "shape_type": "polygon", "points": [[20, 10], [24, 10], [22, 15]]}]  # fmt: skip
    labelme = {
        "version": "5.0",
        "imagePath": "a.png",
        "imageHeight": 24,
        "imageWidth": 32,
        "imageData": None,
        "shapes": shapes,
    }
    box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>9</xmax><ymax>12</ymax></bndbox>"
    size = "<size><width>32</width><height>24</height><depth>1</depth></size>"
    voc = f"<annotation><filename>a.png</filename>{size}<object><name>cell</name>{box}</object></annotation>"
    boxes = "filename,xmin,ymin,xmax,ymax,label\na.png,3,4,9,12,cell\na.png,10,4,20,12,cell\n"
    polygon = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "area": 40,
        "bbox": [1, 1, 8, 8],
        "segmentation": [[1, 1, 9, 1, 9, 8]],
    }
    coco = {"images": [{"id": 1, "file_name": "a.png", "height": 24, "width": 32}], "annotations": [polygon],
            "categories": [{"id": 1, "name": "cell"}]}  # fmt: skip
    runs = "id,annotation,width,height,cell_type,plate_time,sample_date,sample_id,elapsed_timedelta\n"
    runs += "a,3 5 40 6,32,24,cort,11h,2019-06-16,s1,0 days\na,100 7,32,24,cort,11h,2019-06-16,s1,0 days\n"
    return {
        "labelme": Parser({"a.json": [json.dumps(labelme).encode()]}, source("labelme"), "json", {"a.png": png}),
        "voc": Parser({"Annotations/a.xml": [voc.encode()]}, source("voc"), "text", {"JPEGImages/a.png": grey}),
        "box csv": Parser({"boxes.csv": [boxes.encode()]}, source("box_csv"), "text", {"a.png": grey}),
        "coco set": Parser({"a.json": [json.dumps(coco).encode()]}, source("coco"), "json", {"a.png": png}),
        "sartorius": Parser(
            {"train.csv": [runs.encode()]}, source("sartorius", ("cort",)), "text", {"train/a.png": grey}
        ),
    }


def others(folder: Path) -> dict[str, Parser]:
    """Return the parsers of settings, notebooks, tables, run folders and archives."""
    from cellkit.cells.records import ImageRecord, write_records
    from cellkit.run.folder import Run

    record = ImageRecord(
        "a", "images/a.png", 24, 32, cell_type="HEK", split="train", um_per_px=0.5, source="a.tif scene 1"
    )
    records = write_records(folder / "records.csv", [record]).read_bytes()
    os.environ.pop("CELLKIT_RUNNER", None)
    stage = Run(folder / "run").start("01_convert", {"seed": 1})
    stage.path("records.csv").write_bytes(records)
    stage.done(records=stage.path("records.csv"))
    manifest = (folder / "run" / "manifest.json").read_bytes()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder / "records.csv", "a/records.csv")
    demo = [(ROOT / "configs" / name).read_bytes() for name in ("demo.yaml", "sartorius.yaml")]
    book = [(ROOT / "notebooks" / "01_convert.ipynb").read_bytes()]
    cells = "image,line,label,class,score,area_px\na,HEK,1,HEK,0.9,48\na,HEK,2,N2a,0.5,120\n"
    return {
        "yaml": Parser({"a.yaml": demo}, called("cellkit.config.reading.load_config", "a.yaml"), "text"),
        "notebook": Parser({"n/01_convert.ipynb": book}, called("cellkit.run.notebooks.read_notebooks", "n"), "json"),
        "records": Parser({"a.csv": [records]}, called("cellkit.cells.records.read_records", "a.csv"), "text"),
        "cells table": Parser({"a.csv": [cells.encode()]}, measured, "text"),
        "manifest": Parser({"run/manifest.json": [manifest]}, run_folder, "json", {"run/records.csv": records}),
        "zip": Parser({"a.zip": [zipped({"a/b.txt": b"text" * 9, "c.txt": b"c"})]}, unpacked("a.zip"), "zip"),
        "tar": Parser({"a.tar.gz": [packed.getvalue()]}, unpacked("a.tar.gz"), "gzip"),
    }


def of_weights(folder: Path) -> dict[str, Parser]:
    """Return the parsers of checkpoints and model packages."""
    import torch

    from cellkit.models import weights
    from cellkit.models.unet_network import BACKEND, CellposeUNet

    torch.manual_seed(0)
    network = CellposeUNet(widths=(2, 2, 4, 4))
    weights.save_checkpoint(folder / "m.safetensors", network.state_dict(), BACKEND, config=network.config)
    out = io.BytesIO()
    torch.save(network.state_dict(), out)
    tensors, card = (folder / "m.safetensors").read_bytes(), (folder / "m.json").read_bytes()
    about = (
        "type: model\nid: affable-shark\nname: Cells\nlicense: MIT\nconfig: {cellkit: {config: {diameter_px: 30.0}}}\n"
    )
    about += "weights:\n  pytorch_state_dict: {source: w.pt, sha256: null}\n"
    load = "cellkit.models.weights."
    return {
        "safetensors": Parser({"m.safetensors": [tensors]}, called(f"{load}load_tensors", "m.safetensors")),
        "card": Parser(
            {"m.json": [card]}, called(f"{load}card_for", "m.safetensors", BACKEND), "json", {"m.safetensors": tensors}
        ),
        "torch file": Parser({"m.pth": [out.getvalue()]}, called(f"{load}load_tensors", "m.pth"), "zip"),
        "package": Parser({"a.zip": [zipped({"rdf.yaml": about.encode(), "w.pt": out.getvalue()})]}, package, "zip"),
    }
