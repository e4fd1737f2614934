"""Which models can leave, and the network of one as plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cellkit.errors import UserError
from cellkit.fetch.find import of_a_run
from cellkit.predict.model import Model

if TYPE_CHECKING:
    from cellkit.export.plain_unet import CellposeUNet
    from cellkit.models.weights import Card
    from cellkit.predict.model import Conversion

UNET = "cellpose_unet"
WHY_NOT = {
    "maskrcnn": "crops of the boxes it finds are its second half, as many as there are cells: no network from picture to maps",
    "cellpose_sam": "its attention works on squares of one fixed size, of which cellkit lays many over an image",
    "threshold": "it has no network",
}


class Exported(NamedTuple):
    """A network that leaves.

    Attributes
    ----------
    name : str
        As it was given.
    network : CellposeUNet
        In float32, in evaluation mode.
    used : dict
        What it is read with: ``diameter_px``, ``channels``, ``normalise``, thresholds, ``min_area_px``.
    card : Card or None
        Of the checkpoint; None for a published one.
    conversion : Conversion or None
        How the run that made it converted its files; `used` are lengths and areas in px of those files.
    as_trained : dict
        What of `used` is another number in px of the converted pictures.
    """

    name: str
    network: CellposeUNet
    used: dict[str, Any]
    card: Card | None
    conversion: Conversion | None = None
    as_trained: Mapping[str, Any] = {}

    @property
    def title(self) -> str:
        """What it is called outside this machine."""
        return title_of_model(self.name)

    @property
    def parents(self) -> list[str]:
        """What the weights were trained from, the nearest first; models of bioimage.io by ``bioimage.io:ID``."""
        return parents_of(self.card)

    @property
    def cell_px(self) -> float:
        """Diameter in px that the cells shown should have."""
        return float(self.network.diam_mean.item())


def exported(model: Model) -> Exported:
    """Return the network of a model in plain torch, and what it is read with.

    Raises
    ------
    UserError
        The model is no network from a picture to maps.
    """
    from cellkit.export.plain_unet import CellposeUNet
    from cellkit.models import backend_module, title_of
    from cellkit.models.unet_network import load_network
    from cellkit.models.weights import read_card

    if model.backend != UNET:
        reason = next((why for name, why in WHY_NOT.items() if model.backend.startswith(name)), "it is no U-Net")
        raise UserError(
            f"{model.name} is {title_of(model.backend)}, which cannot leave in this format: {reason}",
            "export a Cellpose U-Net (RUN:cellpose); a colleague with cellkit takes any model: --format huggingface",
        )
    if model.cell_classes is not None:
        raise UserError(
            f"{model.name} gives found cells their class by a second model, which knows cells and no pictures",
            f"export the first alone: {model.name.rpartition(':')[0] or 'RUN'}:cellpose",
        )
    used = backend_module(UNET).load(model.checkpoint, backend_module(UNET).Settings(**model.config)).settings
    trained, _ = load_network(model.checkpoint, "float32")
    network = CellposeUNet(trained.widths)
    network.load_state_dict({name: tensor.detach().cpu().contiguous() for name, tensor in trained.state_dict().items()})
    card = read_card(model.checkpoint) if model.checkpoint.suffix == ".safetensors" else None
    as_trained, conversion = {}, model.needed_conversion
    if conversion is not None and conversion.scale != 1:
        as_trained = {"diameter_px": diameter_shown(model, used["diameter_px"]), "min_area_px": used["min_area_px"]}
        used = used | {"diameter_px": as_trained["diameter_px"] / conversion.scale,
                       "min_area_px": round(as_trained["min_area_px"] / conversion.scale**2)}  # fmt: skip
    return Exported(model.name, network.requires_grad_(False).eval(), used, card, conversion, as_trained)


def diameter_shown(model: Model, diameter_px: float) -> float:
    """Return a diameter in px of the pictures that a model is shown; one that was set is in px of the files."""
    conversion = model.needed_conversion
    return diameter_px * conversion.scale if model.own_px and conversion is not None else diameter_px


def parents_of(card: Card | None) -> list[str]:
    """Return what the weights of a card were trained from, the nearest first."""
    metrics = card.metrics if card else {}
    return list(metrics.get("parents") or ([metrics["base"]] if "base" in metrics else []))


def title_of_model(name: str) -> str:
    """Return what a model is called outside this machine: a run's folder and the model's name in it, or the file's name.

    Examples
    --------
    >>> title_of_model("runs/demo:cellpose_tuned"), title_of_model("/data/cyto3.pth"), title_of_model("starter")
    ('demo:cellpose_tuned', 'cyto3', 'starter')
    """
    run, key = of_a_run(name)
    return f"{Path(run).name}:{key}" if run else Path(name).stem
