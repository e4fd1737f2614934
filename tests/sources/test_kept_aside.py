"""A folder of images kept aside, read as those of the run: all labelled ones are test images."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from test_labelme import LABELME, config, labelme, mask_shape

from cellkit.errors import UserError
from cellkit.sources.kept_aside import convert_folder


@pytest.fixture
def stage(tmp_path):
    said = SimpleNamespace(read={}, quarantined=[])

    def path(name):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        return tmp_path / "run" / name

    return SimpleNamespace(
        said=said, path=path, reads=lambda **paths: said.read.update(paths), quarantine=said.quarantined.extend
    )


@pytest.mark.parametrize("below", ["", "test/", "train/"])
def test_every_labelled_image_is_a_test_image(tmp_path, stage, below):
    folder = tmp_path / "kept"
    for name in "ab":
        labelme(
            folder / f"{below}{name}.json", [mask_shape("a", 2, 3, np.ones((5, 6))), mask_shape("odd", 20, 9, [[1]])]
        )
    (folder / f"{below}c.json").write_text('{"shapes": 5}')
    aside = convert_folder(config("labelme", **LABELME), str(folder), stage)
    assert [record.split for record in aside.records] == ["test"] * 2 and not any(r.flags for r in aside.records)
    assert aside.classes == ("A", "B") and [x.class_ids.tolist() for x in aside.instances] == [[1, 0]] * 2
    assert aside.image(0).shape == (24, 32, 3) and stage.said.read == {"test_folder": str(folder)}
    assert [one.item for one in stage.said.quarantined] == [f"{below}c.json"]


def test_no_folder_is_no_image_and_a_wrong_one_is_refused(tmp_path, stage):
    cfg = config("labelme", **LABELME)
    assert len(convert_folder(cfg, None, stage)) == 0 and stage.said.read == {}
    with pytest.raises(UserError, match="test_folder is 'nowhere', no such folder"):
        convert_folder(cfg, "nowhere", stage)
    labelme(tmp_path / "bare/1.json", [])
    with pytest.raises(UserError, match="percentiles_of is batch"):
        convert_folder(cfg.model_copy(update={"percentiles_of": "batch"}), str(tmp_path / "bare"), stage)
