"""What the U-Net learns from, step by step: crops of the training images, and of drawn cells where some are replayed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.cells.records import MIXED
from cellkit.errors import UserError
from cellkit.models.shared import diameter
from cellkit.models.shared.contract import merged
from cellkit.models.shared.flow_loss import FlowLoss, Prepared, Variation, prepare
from cellkit.models.shared.in_parts import InParts
from cellkit.models.shared.inputs import CELL_PX, SHOWN, refuse_empty
from cellkit.models.shared.processes import place
from cellkit.models.shared.threshold_search import least_area_of
from cellkit.models.unet_search import DEFAULTS

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset
    from cellkit.cells.instances import Instances

SCRATCH = "scratch"
UNSET = {"flow_threshold": 0.0, "cellprob_threshold": 0.0}  # while training, where none is set: every mask counts
REPLAYED, REPLAY_SEED = 2, 4711  # drawn fields of each kind, of seeds that no starter weights were made with


def uncalibrated(train: CellDataset, config: Any) -> dict[str, Any]:
    """Return the settings while training: the diameter of the labels, or of those of each image; thresholds at 0 if not set."""
    middle_px = None if config.diameter_px else diameter.middle_of(cells.areas_px for cells in train.instances)
    unset = {
        "diameter_of": "image" if middle_px else DEFAULTS["diameter_of"],
        "min_area_px": least_area_of(train.instances),
    }
    settings = merged(config, UNSET | unset, DEFAULTS)
    own_px = middle_px if settings["diameter_of"] == "image" else None
    return {**settings, "diameter_px": config.diameter_px or own_px or diameter.diameter_of(train.instances)}


def loss_of(train: CellDataset, config: Any, settings: Mapping[str, Any], cache: Path | None = None) -> FlowLoss:
    """Return the loss of a training's steps: it holds the network with the weights to start from, and what it learns from.

    Parameters
    ----------
    config : cellkit.models.cellpose_unet.TrainSettings
    settings : mapping
        What images are read with: diameter_px, diameter_of, channels, normalise.
    cache : Path, optional
        Folder of the flows of the training images.

    Raises
    ------
    UserError
        No weights to start from, or nothing in the channels that the network is shown.
    """
    from cellkit.models.unet_network import load_start
    from cellkit.parallel import progress

    refuse_frozen_scratch(config)
    network = load_start(config.base, config.seed, precision=config.precision)
    network.freeze(config.frozen_levels, config.fixed_norms and config.base != SCRATCH)
    each = progress(range(len(train)), "flows of training images")
    cell_px = float(network.diam_mean.item())
    shown = {"channels": settings["channels"], "normalise": settings["normalise"], "cell_px": cell_px}
    items = [prepare(*train[i], scaled_by(train.instances[i], settings), cache, **shown) for i in each]
    refuse_empty([item.planes for item in items], train, SHOWN[settings["channels"]], "finetune.channels")
    variation = Variation(config.rotate, config.intensities == "strong", config.outside_counts)
    share = config.replay_share
    replay = replayed(config.seed, cache, cell_px) if share else []
    types = [record.cell_type for record in train.records] if config.balance_types else []
    kinds = ["" if kind == MIXED else kind for kind in types]
    return FlowLoss(network, items, config.batch_size, config.crop_px, config.seed, variation, replay, share, kinds)


def scaled_by(cells: Instances, settings: Mapping[str, Any]) -> float:
    """Return the diameter that an image is scaled by: as it will be when predicted, if what is found there is right."""
    assumed_px = settings["diameter_px"]
    return diameter.own_diameter(cells, assumed_px) if settings["diameter_of"] == "image" else assumed_px


def in_processes(loss_at: FlowLoss) -> FlowLoss | InParts:
    """Return the loss of a training's steps where several processes share each batch; of one process as it is.

    Batch norm that is trained then looks at the crops of all of them.
    """
    if place()[1] == 1:
        return loss_at
    from cellkit.models.shared.shared_norms import share_norms

    share_norms(loss_at.network)
    loss_at.network.freeze(len(loss_at.network.frozen), loss_at.network.fixed_norms)  # the new norms too
    remedy = "set finetune.batch_size or crop_px lower, finetune.gpus higher, or use a machine with more memory"
    return InParts(loss_at, loss_at.batch_size, loss_at.crop_px, remedy, whole=True)


def replayed(seed: int, cache: Path | None = None, cell_px: float = CELL_PX) -> list[Prepared]:
    """Return drawn fields, of each kind that the starter weights know, for a training to replay; shown as they were then."""
    from cellkit.cells.drawn.pictures import KINDS, draw
    from cellkit.parallel import progress

    fields = [(kind, index) for kind in KINDS for index in range(REPLAYED)]
    pairs = [draw(*field, REPLAY_SEED + seed) for field in progress(fields, "drawn fields to replay")]
    each = ((image, truth, diameter.diameter_of([truth])) for image, truth in pairs if len(truth))
    return [prepare(*one, cache, cell_px=cell_px) for one in each]


def refuse_frozen_scratch(config: Any) -> None:
    """Refuse to leave random weights as they are.

    Raises
    ------
    UserError
        ``base`` is "scratch", and levels are frozen.
    """
    if config.base == SCRATCH and config.frozen_levels:
        problem = (
            f"finetune.base is scratch, and finetune.frozen_levels is {config.frozen_levels}: random weights would stay"
        )
        raise UserError(problem, "set frozen_levels: 0, or start from trained weights")
