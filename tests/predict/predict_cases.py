"""Pictures, models and a run folder, for the tests of predictions."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellkit.cells.records import write_records
from cellkit.config.sections import ConvertConfig, FinetuneConfig, LabelConfig, MaskrcnnConfig
from cellkit.fetch.find import find_weights
from cellkit.models import weights
from cellkit.predict.model import find_model
from cellkit.run.folder import Run

THRESHOLD = find_model("threshold", {"diameter_px": 30})

CHANNELS = {"nuclei": "DAPI", "cytoplasm": "actin"}


@pytest.fixture(scope="module")
def folder(drawn, tmp_path_factory) -> Path:
    """Six pictures as notebook 01 writes them."""
    folder = tmp_path_factory.mktemp("pictures")
    for record in drawn.records:
        shutil.copy(drawn.root / record.path, folder / f"{record.image_id}.png")
    return folder


@pytest.fixture(scope="module")
def stack(drawn, tmp_path_factory) -> Path:
    """A two-channel OME-TIFF of two times and three planes: actin first, DAPI second."""
    planes = np.stack([drawn.image(0)[..., 1:3].transpose(2, 0, 1), drawn.image(1)[..., 1:3].transpose(2, 0, 1)])
    planes = (planes[:, :, None] * np.array([60, 200, 100])[None, None, :, None, None]).astype(np.uint16)
    path = tmp_path_factory.mktemp("stacks") / "plate.ome.tif"
    metadata = {
        "axes": "TCZYX",
        "Channel": {"Name": ["actin", "DAPI"]},
        "PhysicalSizeX": 0.5,
        "PhysicalSizeXUnit": "µm",
    }
    tifffile.imwrite(path, planes, metadata=metadata, photometric="minisblack")
    return path


@pytest.fixture(scope="module")
def unet(tmp_path_factory) -> Path:
    """A Cellpose U-Net of random numbers, with its card."""
    import torch

    from cellkit.models.unet_network import CellposeUNet

    torch.manual_seed(1)
    told = {
        "diameter_px": 28.0,
        "channels": "both",
        "flow_threshold": 0.3,
        "cellprob_threshold": 6.0,
        "min_area_px": 15,
    }
    path = tmp_path_factory.mktemp("unet") / "cellpose_tuned.safetensors"
    return weights.save_checkpoint(path, CellposeUNet().state_dict(), "cellpose_unet", config=told)


@pytest.fixture(scope="module")
def run_dir(drawn, unet, tmp_path_factory) -> Path:
    """A run folder with the stages, outputs and settings that predictions ask for."""
    root = tmp_path_factory.mktemp("runs") / "demo"
    run = Run(root)
    channels = {"channels": CHANNELS, "projection": 1, "percentiles": (1.0, 99.0), "scale": 0.5}
    stage = run.start("01_convert", ConvertConfig(**channels))
    for record in drawn.records:
        stage.path(record.path).write_bytes((drawn.root / record.path).read_bytes())
    stage.done(records=write_records(stage.path("records.csv"), drawn.records), images=stage.path("images"))
    stage = run.start("02_label_with_cellpose", LabelConfig(diameter_px=33.0, min_area_px=20))
    told = {"config": {"diameter_px": 33.0, "min_area_px": 20}}
    floor = weights.save_checkpoint(stage.folder / "threshold.safetensors", {}, "threshold", **told)
    stage.done(labels=write_records(stage.path("labels.csv"), []), threshold_checkpoint=floor)
    stage = run.start("03_finetune_cellpose", FinetuneConfig())
    tuned = weights.copy_checkpoint(unet, stage.folder / "cellpose_tuned")
    base = weights.copy_checkpoint(find_weights("starter"), stage.folder / "cellpose_base")
    stage.done(cellpose_checkpoint=base, cellpose_base_checkpoint=base, cellpose_tuned_checkpoint=tuned)
    stage = run.start("05_train_maskrcnn", MaskrcnnConfig())
    told = {"classes": ("HEK", "N2a"), "config": {"score_threshold": 0.6, "fpn_channels": 16, "diameter_px": None}}
    path = weights.save_checkpoint(stage.folder / "maskrcnn.safetensors", {}, "maskrcnn_torchvision", **told)
    stage.done(maskrcnn_checkpoint=path)
    return root
