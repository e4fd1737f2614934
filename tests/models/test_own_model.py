"""A segmenter of one's own is one file of a dozen lines: in a folder, or in an installed package and named in full."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_png

from cellkit import models
from cellkit.cells.dataset import predict_all
from cellkit.commands.main import main
from cellkit.config.reading import load_config
from cellkit.errors import UserError
from cellkit.fetch.find import find_weights
from cellkit.formats.label_images import write_labels
from cellkit.labelling.annotate import choose_labels, with_diameter
from cellkit.models import get_backend, is_backend, model_name, needs_checkpoint
from cellkit.run.folder import fingerprint_of

BRIGHT = '''"""Cells are what is brighter than a limit."""
from pydantic import Field
from scipy import ndimage
from cellkit.cells.instances import Instances
from cellkit.models.shared.contract import Segmenter, merged
from cellkit.settings import Frozen
TITLE = "Bright"
NEEDS_CHECKPOINT = False
BYTES_PER_PX = 20
class Settings(Frozen):
    limit: int | None = Field(None, ge=0, le=255, description="grey value above which a pixel is a cell's")
TrainSettings = Settings
def load(checkpoint=None, settings=None):
    used = merged(settings, {}, {"limit": 100})
    find = lambda image, left_out: Instances.from_labels(ndimage.label(image.max(axis=2) > used["limit"])[0])
    return Segmenter(find, used)
'''


@pytest.fixture(params=["bright", "my_package.my_model"])
def own(request, tmp_path, monkeypatch) -> Iterator[str]:
    """The name of a backend that is one file: in a folder of one's own, or in a package."""
    name = request.param
    folder = tmp_path / "own" / name.partition(".")[0] if "." in name else tmp_path / "own"
    folder.mkdir(parents=True)
    (folder / f"{name.rpartition('.')[2]}.py").write_text(BRIGHT)
    if "." in name:
        (folder / "__init__.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path / "own")
    else:
        monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder)])
    yield name
    for module in [one for one in sys.modules if one.startswith(("my_package", "cellkit.models.bright"))]:
        del sys.modules[module]


@pytest.mark.parametrize("own", ["my_package.my_model"], indirect=True)
def test_other_code_of_an_installed_backend_is_another_setting(own, tmp_path):
    section = SimpleNamespace(backend=own, fingerprint=lambda: {"backend": own})
    before = fingerprint_of(section)
    with open(tmp_path / "own" / "my_package" / "my_model.py", "a") as file:
        file.write("\n# other\n")
    assert before["backend_code"] != fingerprint_of(section)["backend_code"]
    assert fingerprint_of(SimpleNamespace(backend="threshold", fingerprint=dict)) == {}


@pytest.fixture
def images(tmp_path) -> Path:
    """Two images and their labels."""
    for k in range(2):
        labels = np.zeros((40, 50), np.int32)
        labels[4:14, 5 + k : 20], labels[20:36, 25:45] = 1, 2
        image = np.zeros((40, 50, 3), np.uint8)
        image[..., 1] = 200 * (labels > 0)
        write_png(tmp_path / f"images/{k}.png", image)
        write_labels(tmp_path / f"truth/{k}.tif", labels)
    return tmp_path


def test_is_found_by_its_name(own):
    assert is_backend(own) and not needs_checkpoint(own)
    assert (get_backend(own).TITLE, model_name(own)) == ("Bright", "Bright")


def test_predicts_and_is_scored(own, images, capsys):
    assert main(["predict", own, str(images / "images"), "-o", str(images / "found.json")]) == 0
    capsys.readouterr()
    assert main(["score", str(images / "truth"), str(images / "found.json"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 2 and told["conventions"]["kaggle"]["score"] == 1.0
    assert main(["predict", own, str(images / "images"), "-o", str(images / "none.json"), "--set", "limit=255"]) == 0
    assert json.loads((images / "none.json").read_text())["annotations"] == []


def test_labels_with_its_own_settings(own, drawn, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(f"classes: [HEK, N2a]\nlabel: {{backend: {own}, use: proposed, limit: 30}}\n")
    config = load_config(path).label
    assert config.limit == 30
    backend = get_backend(config.backend)
    segment = backend.load(find_weights(config.model), with_diameter(config, backend, None, drawn))
    labelled = choose_labels(drawn, predict_all(segment, drawn, "propose"), {}, config.use, config.min_area_px)
    assert segment.settings == {"limit": 30} and {item.made_by for item in labelled} == {"proposed"}
    assert len(labelled) == len(drawn) and sum(len(item.instances) for item in labelled) > 5
    path.write_text(f"label: {{backend: {own}, brightness: 30}}\n")
    with pytest.raises(UserError, match="unknown key 'label.brightness'\nknown keys of label: .*, limit"):
        load_config(path)


def test_a_name_that_is_none(tmp_path):
    for name in ("no_package.my_model", "json.decoder", "cellkit.errors", ".", "a..b"):
        assert not is_backend(name)
        with pytest.raises(UserError, match=f"no backend '{name}'\ninstall its package; .* the module states TITLE"):
            get_backend(name)
