"""The maps of a network, kept on disk while they are needed again: by content, whole or not at all, no more than so many."""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellkit.errors import of_place
from cellkit.files import atomic_path
from cellkit.log import LOG

if TYPE_CHECKING:
    from torch import nn

FOLDER = ".maps"  # beside the checkpoints of a stage under way; a hidden folder goes when the stage is done
DIGEST_BYTES = 32
UNREAD = ("diam_labels", "num_batches_tracked")  # of a network's tensors: they do not change its maps


class MapCache:
    """Maps of one network, by the content of what they were made from.

    Parameters
    ----------
    network : nn.Module
        As it is now; one whose weights change afterwards needs another `MapCache`, on the same folder.
    folder : Path
        Made where it is missing.
    most_gb : float
        Disk space that all files in the folder may take; the oldest go.
    number_type : str
        What maps are kept as: "float16", which is half as large, or "float32".
    """

    def __init__(self, network: nn.Module, folder: Path, most_gb: float, number_type: str = "float16"):
        self.folder, self.most_bytes, self.number_type = Path(folder), most_gb * 1e9, number_type
        self._weights = weights_sha256(network)

    def place(self, image: np.ndarray, *settings: object) -> Path:
        """Return the file of the maps of an image, (H, W, 3) uint8, made with these settings; it need not exist."""
        digest = hashlib.sha256(f"{self._weights} {image.shape} {image.dtype} {settings}".encode())
        digest.update(np.ascontiguousarray(image))
        return self.folder / f"{digest.hexdigest()[:32]}.maps"

    def read(self, place: Path) -> np.ndarray | None:
        """Return the maps of a file as float32; None where there is none, or where its bytes are not those written."""
        try:
            content = place.read_bytes()
        except OSError:
            return None
        body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            return None
        with suppress(OSError):
            os.utime(place)
        return np.load(io.BytesIO(body), allow_pickle=False).astype(np.float32)

    def write(self, place: Path, maps: np.ndarray) -> None:
        """Keep maps, and let the oldest files go; where the disk does not take them, say so."""
        body = io.BytesIO()
        np.save(body, maps.astype(self.number_type))
        try:
            with atomic_path(place) as temporary:
                temporary.write_bytes(body.getvalue() + hashlib.sha256(body.getvalue()).digest())
            self._let_go()
        except OSError as error:
            if not of_place(error):
                raise
            LOG.info(f"maps are computed again when needed, not kept: {error}")

    def _let_go(self) -> None:
        """Remove the files that were used longest ago until the others fit; another process may do the same."""
        files = []
        for path in self.folder.glob("*.maps"):
            with suppress(FileNotFoundError):
                about = path.stat()
                files.append((about.st_mtime_ns, path.name, about.st_size, path))
        taken = sum(size for _, _, size, _ in files)
        for _, _, size, path in sorted(files):
            if taken <= self.most_bytes:
                return
            path.unlink(missing_ok=True)
            taken -= size


def cache_in(folder: Path, network: nn.Module, most_gb: float, number_type: str = "float16") -> MapCache | None:
    """Return the cache of a network's maps in a folder of checkpoints; None where none are to be kept."""
    return MapCache(network, folder / FOLDER, most_gb, number_type) if most_gb else None


def weights_sha256(network: nn.Module) -> str:
    """Return the sha256 of all that decides a network's maps: its tensors by name, its number type, the torch that runs it."""
    import torch

    digest = hashlib.sha256(f"{torch.__version__} {network.arithmetic}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        if not name.endswith(UNREAD):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()))
    return digest.hexdigest()
