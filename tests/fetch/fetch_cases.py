"""A server on 127.0.0.1 and what it offers, for the tests of fetching."""

import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
from loopback import Server

from cellkit.fetch.download import Patience

QUICK = Patience(timeout_s=5.0, tries=2, backoff_s=0.01)


def zipped(files: dict[str, bytes]) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.fixture
def server(monkeypatch):
    with Server() as running:
        monkeypatch.setenv("CELLKIT_MIRROR", running.url)
        yield running


@pytest.fixture
def offline(monkeypatch):
    """A server that has gone: every connection is refused."""
    with Server() as gone:
        pass
    monkeypatch.setenv("CELLKIT_MIRROR", gone.url)


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data"


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


# ---- weights -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cyto3(tmp_path_factory) -> Path:
    """A checkpoint as Cellpose 3 saves one, with random numbers."""
    from cellkit.models.unet_network import CellposeUNet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("published") / "cyto3"
    torch.save(CellposeUNet().state_dict(), path)
    return path


@pytest.fixture
def weights_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CELLKIT_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"
