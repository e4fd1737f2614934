"""The U-Net as files that torch opens without the network's code: TorchScript, and a program of torch.export."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.files import atomic_path

if TYPE_CHECKING:
    from cellkit.export.plain_unet import CellposeUNet

MOST_BATCH, LEAST_PX, MOST_PX = 64, 16, 8192  # what the exported program accepts
OWN_RECORDS = ("version", "byteorder", ".data/serialization_id")  # which torch's writer adds by itself
ABOUT = "cellkit.json"  # name of the metadata inside


def write_torchscript(network: CellposeUNet, path: str | Path, about: Mapping[str, Any]) -> Path:
    """Write a network as TorchScript, for `torch.jit.load` and for programs in Java and C++; sizes are multiples of 8.

    Parameters
    ----------
    about : mapping
        What its extra file ``cellkit.json`` says.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # torch advises torch.export; DeepImageJ and QuPath read this one
        with torch.no_grad():
            traced = torch.jit.trace(network, torch.zeros(1, 2, 32, 40))
        content = io.BytesIO()  # a file would put its own name into the archive
        torch.jit.save(traced, content, _extra_files={ABOUT: json.dumps(about)})
    return _written(path, _without_paths(content))


def _without_paths(saved: io.BytesIO) -> io.BytesIO:
    """Return saved TorchScript without the records that say in which files of this machine its lines were written."""
    import torch

    reader, content = torch._C.PyTorchFileReader(io.BytesIO(saved.getvalue())), io.BytesIO()
    writer = torch._C.PyTorchFileWriter(content)
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and name not in OWN_RECORDS:
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return content


def write_program(network: CellposeUNet, path: str | Path, about: Mapping[str, Any]) -> Path:
    """Write a network as a program of torch.export, for `torch.export.load`; sizes are multiples of 8, from 16 to 8192 px.

    Parameters
    ----------
    about : mapping
        What its extra file ``cellkit.json`` says.
    """
    import torch

    size = {
        0: torch.export.Dim("batch", min=1, max=MOST_BATCH),
        2: 8 * torch.export.Dim("height", min=LEAST_PX // 8, max=MOST_PX // 8),
        3: 8 * torch.export.Dim("width", min=LEAST_PX // 8, max=MOST_PX // 8),
    }
    program = torch.export.export(network, (torch.zeros(2, 2, 32, 40),), dynamic_shapes=(size,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which names files of this machine
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={ABOUT: json.dumps(about)})
    return _written(path, content)


def _written(path: str | Path, content: io.BytesIO) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getvalue())
    return Path(path)
