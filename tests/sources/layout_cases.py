"""Pictures and settings that the tests of layouts share."""

from pathlib import Path

import numpy as np
from PIL import Image

from cellkit.config.sections import ChannelsConfig, ConvertConfig
from cellkit.modules import load

RNG = np.random.default_rng(0)

GREY = RNG.integers(0, 255, (24, 32), dtype=np.uint8)

LABELS = np.zeros((24, 32), np.int32)

LABELS[2:9, 3:12], LABELS[12:20, 10:30], LABELS[22, 1] = 1, 4, 9


def config(source, nuclei=0, cytoplasm=None, **options):
    channels = ChannelsConfig(nuclei=nuclei, cytoplasm=cytoplasm)
    return ConvertConfig(source=source, channels=channels, **options)


def save(path, pixels=GREY):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def listed(root, cfg):
    return {item.image_id: item for item in load("source", cfg.source).read(Path(root), cfg)}
