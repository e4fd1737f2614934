"""What a Mask R-CNN begins from: an adapted Cellpose network, a detector of one's own, or a published one.

Weights are taken over module by module, where all of a module's tensors are there and fit; what is new is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.models import weights
from cellkit.models.shared.detector_settings import BEFORE, DEFAULTS, Settings, Training, read_with

SCRATCH, TUNED, UNET = "scratch", "tuned", "cellpose_unet"
KEPT = ("shown", "widths", "anchor_sizes", "norm", "imagenet")  # of a detector that another one starts from
CLASSIFIERS = ("cell_classifier.last.", "class_head.last.")  # the layers that have an output for each class


def check_start(config: Training, name: str, published: str) -> None:
    """Refuse what cannot be the start of a detector, as far as its name and card tell; nothing is loaded.

    Parameters
    ----------
    config : Training
        With ``backbone``, and ``start``: a path, "scratch", or "tuned" = the Cellpose network that notebook 03 keeps.
    name : str
        Of the backend.
    published : str
        What the card of fetched weights calls their kind.

    Raises
    ------
    UserError
        Random weights that would stay frozen, an end of a freezing that there is not, weights of another kind of network, or
        bfloat16 for a ResNet-50.
    """
    start, backbone = config.start, config.backbone
    other = "set maskrcnn.start to weights of a ResNet-50, or scratch, or maskrcnn.backbone: cellpose_unet"
    if start == SCRATCH and config.freeze_backbone:
        raise UserError("maskrcnn.start is scratch and freeze_backbone is true", "set maskrcnn.freeze_backbone: false")
    if config.unfreeze_after is not None and not (config.freeze_backbone and backbone == UNET):
        raise UserError(
            f"maskrcnn.unfreeze_after is {config.unfreeze_after:g}, and the encoder is not frozen before",
            "leave unfreeze_after empty, or set freeze_backbone: true and backbone: cellpose_unet",
        )
    if start == TUNED and backbone != UNET:
        raise UserError(f"maskrcnn.start is tuned, a Cellpose network, and maskrcnn.backbone is {backbone}", other)
    if config.precision == "bfloat16" and backbone != UNET:
        raise UserError(
            f"maskrcnn.precision is bfloat16, and {backbone} computes in float32", "set it to auto or float32"
        )
    if Path(start).suffix != ".safetensors":
        return
    card = weights.read_card(start)
    if card.backend == name:
        own = card.told("backbone", start)
        if own != backbone:
            raise UserError(
                f"maskrcnn.start is a detector with {own}, and maskrcnn.backbone is {backbone}",
                f"set maskrcnn.backbone: {own}, or another maskrcnn.start",
            )
    elif backbone == UNET:
        weights.card_for(start, UNET)
    elif card.backend != published:
        raise UserError(f"maskrcnn.start is weights of {card.backend}, and maskrcnn.backbone is {backbone}", other)


def opened(
    checkpoint: Path,
    settings: Settings | None,
    name: str,
    build: Callable[[Mapping[str, Any], int], Any],
) -> tuple[Any, dict[str, Any]]:
    """Return the network of a checkpoint, on its device, and what it is read with.

    Parameters
    ----------
    checkpoint : Path
        What a training wrote.
    settings : Settings, optional
        What is None comes from the card.
    name : str
        Of the backend.
    build : callable
        (settings, number of classes) -> a detector of random numbers.

    Raises
    ------
    UserError
        No checkpoint there, one of another backend, or one of an earlier cellkit.
    """
    from cellkit.machine import arithmetic

    card = weights.card_for(checkpoint, name)
    used = read_with(settings, card.config)
    used |= {k: card.told(k, checkpoint) for k in ("backbone", "shown", "fpn_channels")}
    model = build(used | {"norm": card.config.get("norm")}, len(card.classes))
    tensors = weights.load_tensors(checkpoint)
    if tensors.keys() != model.state_dict().keys():
        raise UserError(
            f"{checkpoint} is a detector that an earlier cellkit built in another way", "train it again (05)"
        )
    model.load_state_dict(tensors)
    return model.to(arithmetic().device).eval(), used


def started(
    config: Training,
    settings: dict[str, Any],
    classes: Sequence[str],
    name: str,
    build: Callable[[Mapping[str, Any], int], Any],
    load_published: Callable[[Any, Path], None],
) -> Any:
    """Return the detector with the weights that it starts from, on its device; note in `settings` what is read from their card.

    Parameters
    ----------
    config : Training
        As `check_start` lets it through.
    classes : sequence of str
        Known classes.
    name : str
        Of the backend.
    build : callable
        (settings, number of classes) -> a detector of random numbers.
    load_published : callable
        (detector, path) -> None: puts weights of a ResNet-50 into it.
    """
    import torch

    from cellkit.machine import arithmetic
    from cellkit.models.unet_network import load_network

    settings["precision"] = config.precision if config.backbone == UNET else "float32"
    own, network = _own_card(config.start, name), None
    if own is not None:
        before = {**DEFAULTS, **own.config}  # an older card does not say how its network was not built yet
        settings |= {key: before[key] for key in KEPT if key in before}
        settings |= {key: before[key] and tuple(own.classes) == tuple(classes) for key in ("texture", "alone")}
    elif config.backbone == UNET and config.start != SCRATCH:
        network, about = load_network(config.start)
        settings |= {"shown": about.get("channels", "both"), **network.config}
    torch.manual_seed(config.seed)
    model = build(settings, len(classes))
    if config.unfreeze_after is not None:  # its parameters belong to the training, without gradients at first
        model.backbone.train_unet(True)
    if own is not None:
        tensors = for_classes(weights.load_tensors(config.start), model, own.classes, classes)
        take_over(model, tensors, f"{name}, from {Path(config.start).name}", _not_among(classes, own.classes))
        _say_differences(own, settings, classes, f"{name}, from {Path(config.start).name}")
    elif network is not None:
        model.backbone.unet.load_state_dict(network.state_dict())
    elif config.start != SCRATCH:
        load_published(model, Path(config.start))
    return model.to(arithmetic().device)


def _own_card(start: str, name: str) -> weights.Card | None:
    """Return the card of weights to start from that are a detector of the same backend; None of all else."""
    card = weights.read_card(start) if Path(start).suffix == ".safetensors" else None
    return card if card is not None and card.backend == name else None


def _not_among(names: Sequence[str], others: Sequence[str]) -> list[str]:
    return [name for name in names if name not in others]


def _say_differences(own: weights.Card, settings: Mapping[str, Any], classes: Sequence[str], called: str) -> None:
    """Say which classes a detector of ours is to forget, and that its masks are to reach another way beyond their boxes."""
    if dropped := _not_among(own.classes, classes):
        LOG.info(f"{called}: its {_classes(dropped)} not taken over, as the configuration does not name them")
    before, now = ({**BEFORE, **one}["mask_box_margin"] for one in (own.config, settings))
    if before != now:
        LOG.info(
            f"{called}: it was trained with mask_box_margin {before:g} and goes on with {now:g}: "
            "its masks have to learn that anew"
        )


def _classes(names: Sequence[str]) -> str:
    return f"class {names[0]} is" if len(names) == 1 else f"classes {', '.join(names)} are"


def take_over(model: Any, tensors: Mapping[str, Any], called: str, new_classes: Sequence[str] = ()) -> list[str]:
    """Put tensors into a network, module by module, where all tensors of a module are there and fit; say what is new.

    Parameters
    ----------
    model : torch.nn.Module
    tensors : mapping
        By the names that the network gives them.
    called : str
        What they are, to be logged.
    new_classes : sequence of str
        Classes whose rows of the classifiers are new, see `for_classes`; to be logged, where others are taken over.

    Returns
    -------
    list of str
        Modules that keep their random weights, sorted.
    """
    wanted = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    fits = {key: key in tensors and tensors[key].shape == value.shape for key, value in wanted.items()}
    modules: dict[str, bool] = {}
    for key, fit in fits.items():
        module = key.rpartition(".")[0]
        modules[module] = modules.get(module, True) and fit
    taken = {key: tensors[key] for key in tensors if key in model.state_dict() and modules.get(key.rpartition(".")[0])}
    model.load_state_dict(taken, strict=False)
    new = sorted(module for module, fit in modules.items() if not fit)
    partly = [m for m, fit in sorted(modules.items()) if fit and new_classes and f"{m}.".startswith(CLASSIFIERS)]
    told = f"of {' and '.join(partly)} all but the rows of {', '.join(new_classes)}" if partly else ""
    names = sorted({".".join(module.split(".")[:2]) for module in new})
    told = "; ".join(filter(None, [told, f"new: {', '.join(names)}" if new else ""]))
    whole = len(modules) - len(new) - len(partly)
    taken_over = (
        f"{whole} of {len(modules)} parts are taken over; {told}" if told else f"all {whole} parts are taken over"
    )
    LOG.info(f"{called}: {taken_over}")
    return new


def for_classes(
    tensors: Mapping[str, Any], model: Any, before: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    """Return tensors whose classifiers know these classes, in this order: by name; one that is new is as in `model`.

    Where all classes are new the classifiers are left out.

    Parameters
    ----------
    before : sequence of str
        Classes that the tensors were trained for.
    """
    made = dict(tensors)
    known = [name for name in classes if name in before]
    for key, value in model.state_dict().items():
        if key.startswith(CLASSIFIERS) and key in tensors and tensors[key].shape[1:] == value.shape[1:]:
            made[key] = value.clone()
            for name in known:
                made[key][list(classes).index(name)] = tensors[key][list(before).index(name)]
            if not known:
                del made[key]
    return made
