"""Published checkpoints turned into cellkit's: renamed, checked on the network, with a card."""

from __future__ import annotations

from pathlib import Path

from cellkit.errors import UserError
from cellkit.fetch.registry import Entry


def swap_inputs(tensors: dict) -> dict:
    """Return the tensors of a Cellpose U-Net that takes its two input channels in the other order and gives the same maps."""
    first = ("downsample.down.res_down_0.conv.conv_0.", "downsample.down.res_down_0.proj.")

    def swapped(key: str, value):
        axis = (
            next((k for k in (0, 1) if value.ndim > k and value.shape[k] == 2), None) if key.startswith(first) else None
        )
        return value if axis is None else value.flip(axis).contiguous()

    return {key: swapped(key, value) for key, value in tensors.items()}


def convert_weights(entry: Entry, source: Path, target: Path) -> Path:
    """Turn a torch file of tensors into safetensors with a card; nothing but tensors is ever opened.

    Parameters
    ----------
    source : Path
        The verified download.
    target : Path
        ``NAME.safetensors``; the card is ``NAME.json``.

    Raises
    ------
    UserError
        Anything but named tensors, or another network than the entry says.
    """
    import torch

    from cellkit.models.weights import load_tensors, save_checkpoint

    tensors = {key.removeprefix("module."): value for key, value in load_tensors(source).items()}
    if entry.backend == "cellpose_unet":
        for key in ("diam_mean", "diam_labels"):  # checkpoints of Cellpose 1 lack them
            tensors.setdefault(key, torch.tensor([entry.diam_mean_px]))
    config = {} if entry.backend == "cellpose_unet" else {"use": "maskrcnn.start"}
    if entry.nuclei_first:
        tensors, config = swap_inputs(tensors), {"channels": "nuclei"}
    save_checkpoint(target, tensors, entry.backend, config=config, metrics={}, licence=entry.licence)
    if entry.backend == "cellpose_unet":
        _check_network(target)
    return target


def _check_network(path: Path) -> None:
    """Open converted weights once as the network they are for; remove them if they are of another."""
    from cellkit.models.unet_network import load_network

    try:
        load_network(path)
    except UserError:
        path.unlink()
        path.with_suffix(".json").unlink()
        raise
