"""Models made of models: several fused, or one for each kind of image; from the command line, from folds, or from a YAML file.

A file holds one of two tables, whose models are anything that `cellkit predict` takes, such a file too::

    fuse:
      models: [runs/a:maskrcnn, runs/b:cellpose_tuned]
      weights: [2, 1]

    route:
      by: runs/a:maskrcnn
      models: {cort: runs/cort:maskrcnn, shsy5y: {model: runs/a:maskrcnn, set: {score_threshold: 0.15}}}
      otherwise: cort
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from cellkit.cells.dataset import CellDataset
from cellkit.config.reading import read_yaml
from cellkit.errors import UserError, nearest
from cellkit.fetch.find import of_a_run
from cellkit.finding import Opener
from cellkit.models import get_backend, if_able
from cellkit.models.shared.contract import Segmenter
from cellkit.models.shared.fusion import FusionSettings, checked_weights, fused
from cellkit.models.shared.live import Live, fixed
from cellkit.models.shared.routing import Vote, class_vote, routed, style_vote, with_classes_of
from cellkit.predict.model import AUTO, Model, find_model
from cellkit.settings import Frozen, Number, as_tuple

SUFFIXES = (".yaml", ".yml")
EXAMPLES = 16  # most training images of a kind that its style is the mean of


# ---- what a file says ------------------------------------------------------------------------------------------------
class Member(Frozen):
    """A model of a file: its name, and settings for its predictions."""

    model: str = Field(description="a checkpoint, RUN:NAME, a name of weights, or a file like this one")
    set: dict[str, Any] = Field({}, description="settings of its predictions, as after --set")


Named = Annotated[Member, BeforeValidator(lambda value: {"model": value} if isinstance(value, str) else value)]


class Fusion(FusionSettings):
    """The table ``fuse``."""

    models: Annotated[tuple[Named, ...], BeforeValidator(as_tuple)] = Field(min_length=1, description="the models")
    weights: Annotated[tuple[Number, ...], BeforeValidator(as_tuple)] | None = Field(
        None, description="one per model, 0 or more; null = 1 each"
    )


class Route(Frozen):
    """The table ``route``."""

    by: Named = Field(description="the model that votes which kind an image is")
    like: str | None = Field(
        None, description="run folder: the kind whose training images look most alike; null = the class of most cells"
    )
    models: dict[str, Named] = Field(min_length=1, description="kind of image -> the model of it")
    otherwise: str = Field(description="the kind whose model takes images of no kind that is listed")


class ModelFile(Frozen):
    """A file that makes a model of models."""

    fuse: Fusion | None = Field(None, description="several models fused")
    route: Route | None = Field(None, description="a model for each kind of image")

    @model_validator(mode="after")
    def _is_one(self) -> ModelFile:
        if (self.fuse is None) == (self.route is None):
            raise ValueError("wanted one table, fuse or route")
        return self


def read_model_file(path: Path) -> ModelFile:
    """Read and check a file of models.

    Raises
    ------
    UserError
        With the key, what came and what was wanted.
    """
    try:
        return ModelFile.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        remedy = "a file of models has a table fuse (models, weights) or route (by, models, otherwise); see the manual"
        raise UserError(f"{path}: {f'{key}: ' * bool(key)}{first['msg']}", remedy) from None


def _refuse_circle(path: Path, within: tuple[Path, ...] = ()) -> None:
    """Refuse a file of models that is a part of itself."""
    if path.resolve() in within:
        raise UserError(f"{path} is a part of itself", "name other models in it")
    said = read_model_file(path)
    members = said.fuse.models if said.fuse else (said.route.by, *said.route.models.values())
    for one in members:
        if one.model.lower().endswith(SUFFIXES):
            _refuse_circle(Path(one.model), (*within, path.resolve()))


# ---- models of models ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class JoinedModel(Model):
    """A model that others make; `members` are those, in order."""

    members: tuple[Model, ...] = field(default=(), kw_only=True)

    @property
    def sha256(self) -> str:
        """Of the checkpoints of its members, in their order."""
        return hashlib.sha256(json.dumps([one.sha256 for one in self.members]).encode()).hexdigest()

    def live(self, scale: float = 1.0) -> Live:
        """Return the model as one of which no setting can be moved: it reads several, each its own."""
        return fixed(self.load(scale))

    def _opened(self, segmenter: Segmenter, scale: float) -> Segmenter:
        segmenter.opener = Opener(self.load, (scale,))
        return segmenter

    def _loaded(self, member: Model, scale: float) -> Segmenter:
        return with_classes_of(member.load(scale), member.classes, self.classes)


@dataclass(frozen=True)
class FusedModel(JoinedModel):
    """Several models fused, see `cellkit.models.shared.fusion.fuse`."""

    weights: tuple[float, ...] = field(kw_only=True)
    settings: FusionSettings = field(default=FusionSettings(), kw_only=True)

    def load(self, scale: float = 1.0) -> Segmenter:
        """Return the function from a stream of images to their cells; the pictures were resized by `scale`."""
        pairs = [(one, weight) for one, weight in zip(self.members, self.weights, strict=True) if weight > 0]
        loaded = [self._loaded(member, scale) for member, _ in pairs]
        return self._opened(fused(loaded, [weight for _, weight in pairs], self.settings), scale)


@dataclass(frozen=True)
class RoutedModel(JoinedModel):
    """A model for each kind of image; the first of `members` votes, the others are those of `kinds`."""

    kinds: tuple[str, ...] = field(kw_only=True)
    otherwise: str = field(kw_only=True)
    like: Path | None = field(default=None, kw_only=True)

    def load(self, scale: float = 1.0) -> Segmenter:
        """Return the function from a stream of images to their cells; the pictures were resized by `scale`."""
        router, *others = self.members
        models = {kind: self._loaded(one, scale) for kind, one in zip(self.kinds, others, strict=True)}
        classless = {kind for kind, one in zip(self.kinds, others, strict=True) if not one.classes}
        vote = class_vote(router.load(scale), router.classes) if self.like is None else _by_style(router, self.like)
        return self._opened(routed(vote, models, self.otherwise, self.classes, classless), scale)


def _by_style(router: Model, run: Path) -> Vote:
    """Return the vote by what the training images of a run look like to a model."""
    backend, settings = get_backend(router.backend), get_backend(router.backend).Settings(**router.config)
    images = CellDataset.from_records(run / "records.csv", "train")
    kinds = _kinds_in(images)
    parts = [images.select(cell_type=kind).sample(EXAMPLES) for kind in kinds]

    def style(pictures: Sequence[np.ndarray]) -> np.ndarray:
        found = if_able(backend, "style", router.checkpoint, pictures, settings)
        if found is None:
            raise UserError(f"{router.name} ({router.backend}) tells no style", "route by a model of cellpose_unet")
        return found

    examples = [style([image for image in part.images()]) for part in parts if len(part)]
    return style_vote(style, np.concatenate(examples) if examples else np.zeros((0, 1)),
                      [kind for kind, part in zip(kinds, parts, strict=True) for _ in range(len(part))])  # fmt: skip


def _kinds_in(images: CellDataset) -> list[str]:
    return sorted({record.cell_type for record in images.records} - {""})


# ---- found by name ---------------------------------------------------------------------------------------------------
def open_model(spec: str | Path, overrides: Mapping[str, Any] | None = None) -> Model:
    """Return the model of a name; besides those of `find_model`, a YAML file of models, or all folds of a run fused.

    Parameters
    ----------
    spec : str or Path
        ``FILE.yaml``; ``RUN/folds/of_5:NAME``, that model of each fold, fused; or what `find_model` takes.
    overrides : mapping, optional
        Settings for this prediction, of every member.

    Raises
    ------
    UserError
        As `find_model` and `read_model_file`; members of other classes, or made from files converted otherwise.
    """
    text, overrides = str(spec), dict(overrides or {})
    if text.lower().endswith(SUFFIXES):
        _refuse_circle(Path(text))
        said = read_model_file(Path(text))
        return _fused_of(text, said.fuse, overrides) if said.fuse else _routed_of(text, said.route, overrides)
    if folds := _folds_in(text):
        return fuse_models([f"{fold}:{of_a_run(text)[1]}" for fold in folds], overrides=overrides, name=text)
    return find_model(text, overrides)


def is_folds(name: str) -> bool:
    """Tell whether a name is that of a model of each fold of a run: ``RUN/folds/of_5:NAME``."""
    return bool(_folds_in(name))


def _folds_in(name: str) -> list[Path]:
    run, _ = of_a_run(name)
    folds = sorted((p for p in Path(run).glob("[0-9]*") if p.name.isdigit()), key=lambda p: int(p.name)) if run else []
    return folds if folds and Path(run).name == f"of_{len(folds)}" else []


def fuse_models(
    specs: Sequence[str],
    weights: Sequence[float] | None = None,
    overrides: Mapping[str, Any] | None = None,
    settings: FusionSettings | None = None,
    name: str = "",
) -> FusedModel:
    """Return several models fused.

    Parameters
    ----------
    specs : list of str
        As for `open_model`.
    weights, settings
        As for `cellkit.models.shared.fusion.fuse`.
    overrides : mapping, optional
        Settings for this prediction, of every model.
    name : str, optional
        What it is called.

    Raises
    ------
    UserError
        As `open_model`.
    """
    settings = settings or FusionSettings()
    members = [open_model(spec, overrides) for spec in specs]
    return fused_model(name or " + ".join(specs), members, weights, settings)


def _fused_of(name: str, said: Fusion, overrides: dict[str, Any]) -> FusedModel:
    members = [open_model(one.model, one.set | overrides) for one in said.models]
    settings = FusionSettings(**{key: getattr(said, key) for key in FusionSettings.model_fields})
    return fused_model(name, members, said.weights, settings)


def fused_model(
    name: str, members: Sequence[Model], weights: Sequence[float] | None, settings: FusionSettings
) -> FusedModel:
    """Return opened models fused, see `fuse_models`."""
    checked = tuple(checked_weights(len(members), weights))
    classes = next((one.classes for one in members if one.classes), ())
    config = {"weights": list(checked), **dict(settings), **_told(members)}
    shared = _shared(members, classes)
    return FusedModel(
        name, "fuse", None, classes, config, **shared, members=tuple(members), weights=checked, settings=settings
    )


def _routed_of(name: str, said: Route, overrides: dict[str, Any]) -> RoutedModel:
    if said.otherwise not in said.models:
        raise UserError(f"{name}: route.otherwise is '{said.otherwise}'", f"choose from {', '.join(said.models)}")
    router = open_model(said.by.model, said.by.set)
    if said.like is None and not router.classes:
        raise UserError(f"{name}: {said.by.model} tells no classes apart", "name a detector, or set route.like: RUN")
    if said.like is not None and not (Path(said.like) / "records.csv").is_file():
        raise UserError(f"{name}: route.like is '{said.like}', no run folder", "name a finished run")
    if said.like is not None and isinstance(router, JoinedModel):
        raise UserError(f"{name}: {said.by.model} tells no style", "route by a model of cellpose_unet")
    told = (
        router.classes
        if said.like is None
        else _kinds_in(CellDataset.from_records(Path(said.like) / "records.csv", "train"))
    )
    if strange := [kind for kind in said.models if kind not in told]:
        problem = f"{name}: route.models has '{strange[0]}'{nearest(strange[0], told)}"
        raise UserError(problem, f"{said.by.model if said.like is None else said.like} tells apart {', '.join(told)}")
    models = {kind: open_model(one.model, one.set | overrides) for kind, one in said.models.items()}
    return routed_model(name, router, models, said.otherwise, said.like)


def routed_model(
    name: str, router: Model, models: Mapping[str, Model], otherwise: str, like: str | None = None
) -> RoutedModel:
    """Return opened models as one for each kind of image, see `Route`."""
    members = [router, *models.values()]
    known = next((one.classes for one in members if one.classes), tuple(models))
    config = {"kinds": list(models), "otherwise": otherwise, "like": like, **_told(members)}
    shared, place = _shared(members, known), None if like is None else Path(like)
    kinds = {"kinds": tuple(models), "otherwise": otherwise, "like": place}
    return RoutedModel(name, "route", None, known, config, **shared, members=tuple(members), **kinds)


def _told(members: Sequence[Model]) -> dict[str, Any]:
    """Return what a prediction notes of the members."""
    return {"members": [{"model": one.name, "backend": one.backend, "settings": one.config} for one in members]}


def _shared(members: Sequence[Model], classes: Sequence[str]) -> dict[str, Any]:
    """Return what all members have in common: the conversion of files, and whether a diameter is in px of the files."""
    for member in members:
        if member.config.get("diameter_px") == AUTO:
            raise UserError(f"{member.name}: a diameter of auto is estimated for one model", "give it in px, or none")
        if strange := [name for name in member.classes if name not in classes]:
            raise UserError(
                f"{member.name} has the class {strange[0]}, others have {', '.join(classes)}",
                "join models of the same classes",
            )
    conversions = [one.conversion for one in members if one.conversion is not None]
    if len({json.dumps(one.to_json(), sort_keys=True) for one in conversions}) > 1:
        raise UserError(
            "the runs of these models converted their files in different ways",
            "join models of runs with the same convert section, or predict with each and join: cellkit fuse",
        )
    return {
        "conversion": conversions[0] if conversions else None,
        "own_px": any(one.own_px for one in members),
    }
