"""One file per channel: joined as the config says, else refused by name."""

import numpy as np
import pytest
import tifffile

from cellkit.config.reading import load_config
from cellkit.config.sections import ChannelsConfig, ConvertConfig
from cellkit.errors import UserError
from cellkit.formats.label_images import write_labels
from cellkit.microscope.channel_files import join_channels, warn_of_seeming_channels
from cellkit.sources.ingest import convert_images

LABELS = np.zeros((24, 32), np.int32)
LABELS[2:9, 3:12], LABELS[12:20, 10:30] = 1, 2
RULE = "_(?P<channel>C[0-9])-[A-Z]+"


def save(path, value=0, shape=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.full(shape, value, np.uint16) + np.arange(shape[-1], dtype=np.uint16), metadata=None)
    return path


def config(channel_from=None, nuclei="C1", cytoplasm="C2"):
    channels = ChannelsConfig(nuclei=nuclei, cytoplasm=cytoplasm)
    return ConvertConfig(source="microscope", classes=("HEK",), channels=channels, channel_from=channel_from)


def test_channels_are_joined_and_their_labels_found_under_either_name(tmp_path):
    root = tmp_path / "in"
    for name in "abc":
        save(root / "HEK" / f"{name}_C1-DAPI.tif"), save(root / "HEK" / f"{name}_C2-GFP.tif", 9)
    (root / "truth" / "HEK").mkdir(parents=True)
    write_labels(root / "truth" / "HEK" / "a.tif", LABELS)
    write_labels(root / "HEK" / "b_masks.tif", LABELS)
    write_labels(root / "HEK" / "c_C1-DAPI_masks.tif", LABELS)
    made = convert_images(config(RULE), root, tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["HEK_a", "HEK_b", "HEK_c"] and not made.quarantined
    assert {record.channels for record in made.images.records} == {"red=;green=C2;blue=C1"}
    assert made.images.records[0].source == "HEK/a_C1-DAPI.tif + HEK/a_C2-GFP.tif"
    assert [len(cells) for cells in made.images.instances] == [2, 2, 2]
    lows = {(row["colour"], row["low"] >= 9) for row in made.conversion}
    assert lows == {("blue", False), ("green", True)}, "each channel comes from its own file"


def test_a_lacking_channel_and_another_size_set_their_image_aside(tmp_path):
    root = tmp_path / "in"
    for name in ("a_C1-DAPI", "a_C2-GFP", "b_C1-DAPI", "c_C1-DAPI"):
        save(root / "HEK" / f"{name}.tif")
    save(root / "HEK" / "c_C2-GFP.tif", shape=(24, 30))
    made = convert_images(config(RULE), root, tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["HEK_a"]
    said = [q.reason for q in made.quarantined]
    assert "'C2' is no channel of b.tif" in said[0] and "differ in size" in said[1]


def test_names_that_differ_in_a_channel_only_are_refused_until_told(tmp_path, capsys):
    paths = [save(tmp_path / "HEK" / f"a_w{k}.tif") for k in (1, 2)]
    with pytest.raises(
        UserError, match="a_w1.tif and a_w2.tif seem to be the channels of one image.*\nset convert.channel_from"
    ):
        convert_images(config(nuclei=0, cytoplasm=None), tmp_path, tmp_path / "run")
    assert join_channels(paths, "each") == paths and join_channels(paths[:1], None) == paths[:1]
    warn_of_seeming_channels(paths)
    assert "a_w1.tif and a_w2.tif seem to be the channels" in capsys.readouterr().err
    with pytest.raises(UserError, match="finds one channel twice"):
        join_channels([save(tmp_path / "C1_C2.tif"), save(tmp_path / "C1_C3.tif")], "(?P<channel>C1)_C[0-9]")
    with pytest.raises(UserError, match="fits no file, e.g. not a_w1.tif"):
        join_channels(paths, "_(?P<channel>C[0-9])")


@pytest.mark.parametrize("value", ["'_('", "'_C[0-9]'"])
def test_the_expression_must_name_a_channel(tmp_path, value):
    (tmp_path / "c.yaml").write_text(f"convert: {{channel_from: {value}}}")
    with pytest.raises(UserError, match="convert.channel_from is"):
        load_config(tmp_path / "c.yaml")
