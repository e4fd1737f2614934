"""Stacks and their writers, for the tests of the readers."""

import struct
from itertools import product
from pathlib import Path

import numpy as np

from cellkit.microscope.open import open_file

ROOT = Path(__file__).parents[2]

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
