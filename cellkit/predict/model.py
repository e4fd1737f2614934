"""Which model: a name becomes a backend, its weights, its settings and the conversion its training images had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.errors import UserError, nearest
from cellkit.files import sha256_file
from cellkit.finding import Opener
from cellkit.log import LOG
from cellkit.microscope.convert import PERCENTILES, Conversion
from cellkit.modules import optional

if TYPE_CHECKING:
    from cellkit.models.shared.live import Live

AUTO = "auto"


KEPT_CONVERSION = "conversion"  # in the card of a model that was exported from a run
CONVERT, LABEL = "01_convert", "02_label_with_cellpose"


AS_IT_IS = Conversion({"red": 0, "green": 1, "blue": 2}, percentiles=None)


# ---- which model ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Model:
    """A model that can be loaded.

    Attributes
    ----------
    name : str
        As it was given.
    backend : str
        Module of `cellkit.models`.
    checkpoint : Path or None
        None where nothing was learned (threshold).
    classes : tuple of str
        Class k of a prediction is ``classes[k - 1]``; empty when the model knows none.
    config : dict
        Settings of the prediction: those of the checkpoint's card, then those given for this prediction.
    conversion : Conversion or None
        How the run that made the model converted its files; None when it comes from no run, and its card does not say.
    own_px : bool
        Whether ``config["diameter_px"]`` was given and is in pixels of the files; else, as a training left it, in
        pixels of the pictures the model is shown, which a run with ``convert.scale`` resized.
    cell_classes : Path or None
        Checkpoint of what gives the cells a class, see `cellkit.models.cell_classes`.
    """

    name: str
    backend: str
    checkpoint: Path | None
    classes: tuple[str, ...]
    config: dict[str, Any]
    conversion: Conversion | None = None
    own_px: bool = False
    cell_classes: Path | None = None

    @property
    def sha256(self) -> str:
        """Of the checkpoint, and of what gives its cells a class; "" where there is none."""
        return "".join(sha256_file(path) for path in (self.checkpoint, self.cell_classes) if path)

    @property
    def needed_conversion(self) -> Conversion | None:
        """The conversion, where it changes what the model is shown."""
        conversion = self.conversion
        return conversion if conversion and (conversion.names_channels or conversion.always) else None

    def load(self, scale: float = 1.0) -> Callable[[Iterable[np.ndarray]], Iterator[Instances]]:
        """Return the function from a stream of (H, W, 3) uint8 to their cells; the pictures were resized by `scale`."""
        from cellkit.models.cell_classes import with_cell_classes

        backend, settings = self._read_with(scale)
        segmenter = backend.load(self.checkpoint, settings)
        if self.cell_classes is not None:
            segmenter = with_cell_classes(segmenter, self.cell_classes)
        segmenter.opener = Opener(self.load, (scale,))
        return segmenter

    def live(self, scale: float = 1.0) -> Live:
        """Return the model in two halves, see `cellkit.models.shared.live`; of one that is not able to, nothing can be moved."""
        from cellkit.models import cell_classes, if_able
        from cellkit.models.shared.live import classified, fixed

        backend, settings = self._read_with(scale)
        live = if_able(backend, "live", self.checkpoint, settings)
        if live is None:
            return fixed(self.load(scale))
        return live if self.cell_classes is None else classified(live, cell_classes.load(self.cell_classes))

    def _read_with(self, scale: float) -> tuple[ModuleType, Any]:
        """Return the backend, and its settings for pictures that were resized by `scale`."""
        from cellkit.models import get_backend

        backend = get_backend(self.backend)
        settings = backend.Settings(**self.config)
        if self.own_px:
            settings = settings.model_copy(update={"diameter_px": self.config["diameter_px"] * scale})
        return backend, settings


def find_model(spec: str | Path, overrides: Mapping[str, Any] | None = None) -> Model:
    """Return the model of that name; never another one in its place.

    Parameters
    ----------
    spec : str or Path
        The path of a checkpoint; ``RUN:NAME``, a model of a finished run with the settings it used (``cellpose_tuned``,
        ``cellpose_base``, ``cellpose`` = the better of the two, ``cellpose_classes`` = that with a class for each cell,
        ``maskrcnn``, ``threshold``); ``starter``; ``threshold``.
    overrides : mapping, optional
        Settings for this prediction, e.g. ``{"diameter_px": 40}``: the diameter in pixels of the files.

    Raises
    ------
    UserError
        No such model, or a setting it does not have.
    """
    from cellkit.fetch.find import find_weights, of_a_run
    from cellkit.models import backend_names, is_backend, needs_checkpoint

    text = str(spec)
    learnt_nothing = [name for name in backend_names() if not needs_checkpoint(name)]
    if not Path(text).is_file() and is_backend(text) and not needs_checkpoint(text):
        model = Model(text, text, None, (), {})
    else:
        model = _of_checkpoint(text, find_weights(text, learnt_nothing))
    run, _ = of_a_run(text)
    if run and not Path(text).is_file():
        _say_outdated(Path(run), text, model.checkpoint)
        model = replace(model, conversion=_run_conversion(Path(run)))
    checked = checked_settings(model.backend, overrides or {})
    own_px = "diameter_px" in checked
    kept = {key: value for key, value in model.config.items() if not (own_px and key == "diameter_of")}
    return replace(model, config=kept | checked, own_px=own_px)


def is_unsized(model: Model) -> bool:
    """Tell whether a model is start weights by their name, whose diameter is that of nobody's cells, and none was given."""
    from cellkit.fetch.find import weights_names

    return model.name in weights_names() and not Path(model.name).is_file() and not model.own_px


def assumed_px(model: Model) -> float | None:
    """Return the diameter in px of the cells that `is_unsized` start weights look for: as their card says, else the network.

    None of other models, and of those that look for cells of any size.
    """
    from cellkit.models import get_backend

    if not is_unsized(model) or optional(get_backend(model.backend), "estimate_diameter") is None:
        return None
    px = model.config.get("diameter_px")
    return px if px is not None else model.load().settings.get("diameter_px")


def _of_checkpoint(name: str, path: Path) -> Model:
    """Return the model in a checkpoint file: its card says which backend; without one it is a published Cellpose."""
    from cellkit.models import backend_module, cell_classes, weights

    if path.suffix != ".safetensors":
        return Model(name, _published(path), path, (), {})
    card = weights.read_card(path)
    if card.backend == cell_classes.NAME:
        finds = _of_checkpoint(name, cell_classes.segmenter_of(path))
        conversion = _kept_conversion(card.config, path) or finds.conversion
        return replace(finds, classes=card.classes, cell_classes=path, conversion=conversion)
    weights.refuse_settings(card, path)
    known = backend_module(card.backend).Settings.model_fields
    config = {key: card.config[key] for key in known if card.config.get(key) is not None}
    return Model(name, card.backend, path, card.classes, config, _kept_conversion(card.config, path))


def _kept_conversion(config: Mapping[str, Any], path: Path) -> Conversion | None:
    """Return how files are to be converted for a model that was exported from a run; None where its card does not say."""
    if config.get(KEPT_CONVERSION) is None:
        return None
    conversion = Conversion.from_json(config[KEPT_CONVERSION])
    _say_colours(conversion, path)
    return conversion


def _say_colours(conversion: Conversion, where: Path) -> None:
    """Say that RGB pictures are converted, where their colours are not those that notebook 01 writes."""
    named = {what: channel for what, channel in conversion.channels.items() if channel is not None}
    if conversion.always and named != {"nuclei": "blue", "cytoplasm": "green"}:
        LOG.warning(f"RGB pictures are converted as in {where}: {conversion.text}")


def _published(path: Path) -> str:
    """Return the backend that reads a published checkpoint; else that of Cellpose 1 to 3, which says what is wrong with it."""
    from cellkit.models import backend_module, backend_names, if_able, weights

    tensors = weights.load_tensors(path)
    knows = [name for name in backend_names() if if_able(backend_module(name), "published", tensors)]
    return knows[0] if knows else "cellpose_unet"


def _say_outdated(run_dir: Path, name: str, checkpoint: Path | None) -> None:
    """Say that a run has converted its images, or split or labelled them, anew since a model of it was trained."""
    from cellkit.manifest import finished_entries, owned_files, read_manifest
    from cellkit.outdated import outdated_stages

    manifest = read_manifest(run_dir)
    for stage, why in outdated_stages(manifest).items() if checkpoint is not None else ():
        files = owned_files({"stages": {stage: finished_entries(manifest)[stage]}})
        if any((run_dir / path).resolve() == checkpoint.resolve() for path in files):
            LOG.warning(
                f"{name} is of an earlier state of the run ({stage}: {why}): images are converted as notebook 01 was last set, "
                f"which may not be how those were that it learned from. Repeat {stage} to be sure"
            )


def _run_conversion(run_dir: Path) -> Conversion | None:
    """Return how the run's images were made, so that new ones go the same way.

    Where the run named its channels by colour (its images came as RGB pictures), new RGB pictures are converted too, and
    this is said; else they are taken for converted ones.
    """
    from cellkit.manifest import finished_entries, read_manifest

    stages = finished_entries(read_manifest(run_dir))
    settings = stages.get(CONVERT, {}).get("config", {})
    if not settings.get("channels"):
        return None
    named = {what: channel for what, channel in settings["channels"].items() if channel is not None}
    by_colour = bool(named) and all(channel in ("red", "green", "blue") for channel in named.values())
    kept = {key: settings[key] for key in ("projection", "scale", "axes", "percentiles_of") if key in settings}
    if settings.get("percentiles_of") == "batch":
        kept["limits"] = _limits_of_run(run_dir / "conversion.csv")
    percentiles = tuple(settings.get("percentiles", PERCENTILES))
    channels = dict(settings["channels"])
    conversion = Conversion(channels, percentiles=percentiles, always=by_colour, made=run_dir / "images", **kept)
    _say_colours(conversion, run_dir)
    return conversion


def _limits_of_run(table: Path) -> dict[str, tuple[float, float]]:
    """Return what became 0 and 255 in each colour of a run scaled as one batch: every row of a colour says the same."""
    import csv

    with open(table, newline="", encoding="utf-8") as file:
        return {row["colour"]: (float(row["low"]), float(row["high"])) for row in csv.DictReader(file)}


def checked_settings(backend: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a prediction, each known to the backend and within its limits.

    Raises
    ------
    UserError
        Naming the setting, what came and what is wanted.

    Examples
    --------
    >>> checked_settings("threshold", {"diameter_px": 30})
    {'diameter_px': 30.0}
    """
    from pydantic import ValidationError

    from cellkit.models import backend_module
    from cellkit.settings import accepted, schema_of

    module = backend_module(backend)
    known = schema_of(module.Settings)["properties"]
    checked: dict[str, Any] = {}
    for key, value in overrides.items():
        if key not in known:
            raise UserError(f"{backend} has no setting '{key}'{nearest(key, known)}", f"it has: {', '.join(known)}")
        try:
            if key == "diameter_px" and value == AUTO:
                checked[key] = value
            else:
                checked[key] = getattr(module.Settings(**{key: value}), key)
        except ValidationError:
            raise UserError(f"{key} is {value!r}", f"{key} is {accepted(known[key])}") from None
    return checked
