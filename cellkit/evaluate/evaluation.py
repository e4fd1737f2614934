"""The evaluation of a run: every predictions file against the truth, one table, one winner; and whether tuning is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cellkit.cells.dataset import NO_ACCURACY, OF_BOXES, CellDataset
from cellkit.cells.instances import Instances
from cellkit.errors import UserError, counted, nearest
from cellkit.evaluate.verdict import who_decided
from cellkit.files import write_json
from cellkit.formats.coco import write_predictions
from cellkit.formats.coco_reading import read_coco, read_results
from cellkit.log import LOG
from cellkit.models import FUSED, TEACHER, if_able, order_models
from cellkit.models.gate import judges
from cellkit.models.shared.fusion import fuse
from cellkit.scores.attribution import attribute
from cellkit.scores.table import score_table, summary

if TYPE_CHECKING:
    import pandas

CONVENTION = "MAP IoU (kaggle: IoU > 0.50:0.05:0.95, mean of images)"
KEY = "predictions_"
LEAST_CEILING = 0.8  # MAP IoU of labels that became targets and labels again; below that a training is in vain


def predictions_of(
    paths: Mapping[str, Path], images: CellDataset, fuse_models: Sequence[str] = ()
) -> dict[str, dict[str, Instances]]:
    """Read every predictions file of a run; several of the models may be fused to one more, called "fused".

    Parameters
    ----------
    paths : mapping
        ``run.find_all("predictions_*")``.
    images : CellDataset
        ``CellDataset.from_records``: all images of the run.
    fuse_models : sequence of str
        ``evaluate.fuse``: the models that are fused, with equal weights; none = no model is fused.

    Returns
    -------
    dict
        Model name -> image_id -> Instances; an image a model was not asked about has no cell there.

    Raises
    ------
    UserError
        A model to be fused has no predictions.
    """
    shapes = {k: (r.height_px, r.width_px) for k, r in zip(images.ids, images.records, strict=True)}
    named = [r.image_id for r in images.records]
    found = {
        key.removeprefix(KEY): dict(zip(named, read_results(path, shapes), strict=True)) for key, path in paths.items()
    }
    for name in fuse_models:
        check_submit(name, list(found), "fuse")
    fused = {name: fuse([found[model][name] for model in fuse_models]) for name in named} if fuse_models else None
    return found if fused is None else found | {FUSED: fused}


def write_fused(stage: Any, images: CellDataset, predictions: Mapping[str, Mapping[str, Instances]]) -> Path | None:
    """Write what the fused model of `predictions_of` found, for the report and for whoever hands it in; None without one."""
    held_out = images.held_out()
    return (
        write_predictions(stage, FUSED, held_out, of_images(predictions[FUSED], held_out))
        if FUSED in predictions
        else None
    )


def read_truths(paths: Mapping[str, Path], root: str | Path) -> dict[str, CellDataset]:
    """Read the images that something may be scored against, by split; say which are not: a proposal is no truth.

    Parameters
    ----------
    paths : mapping
        ``run.find_all("coco_*")``; the training images are not read.
    root : path
        The run folder.

    Returns
    -------
    dict
        "val" and "test" -> CellDataset, without images where no person labelled one or where there is no file of it. Empty where
        there is no file at all.
    """
    others = {key.removeprefix("coco_"): path for key, path in paths.items() if key != "coco_train"}
    labelled = {split: read_coco(path, root, boxes=True) for split, path in others.items()}
    truths = without_proposals(labelled)
    proposed = {split: [maker == "proposed" for maker in data.made_by] for split, data in labelled.items()}
    names = [record.image_id for split, data in labelled.items() for record in data.subset(proposed[split]).records]
    if names:
        LOG.info(f"not scored, because a model proposed their labels: {', '.join(names)}")
    if names and not any(map(len, truths.values())):
        LOG.info(NO_ACCURACY)
    if any(data.boxes_only for data in truths.values()):
        LOG.info(OF_BOXES)
    for data in [*labelled.values(), *([CellDataset([], [])] if paths else [])]:
        for split in ("val", "test"):
            truths.setdefault(split, data.subset([]))
    return truths


def without_proposals(labelled: Mapping[str, CellDataset]) -> dict[str, CellDataset]:
    """Return, by split, the images whose cells no model proposed."""
    return {split: data.without_proposed() for split, data in labelled.items()}


def unjudged(models: Iterable[str], wanted: str, rejected: Sequence[str] = ()) -> str:
    """Return the model that is handed in where nothing can decide here: the one named, else what 03 kept of Cellpose.

    Without Cellpose it is the first that was not rejected.

    Raises
    ------
    UserError
        The one named was not run.
    """
    names = order_models(models)
    if wanted == "best":
        left = [name for name in names if name not in rejected and name != TEACHER] or names
        return next((name for name in ("cellpose_base", "cellpose_tuned") if name in left), left[0])
    return check_submit(wanted, names)


def check_submit(wanted: str, names: Sequence[str], key: str = "submit") -> str:
    """Return the model named in ``evaluate.submit``, or another key; refuse one that is none of those that are run.

    Raises
    ------
    UserError
        With the names to choose from.
    """
    if wanted not in names:
        problem = f"evaluate.{key} is '{wanted}'{nearest(wanted, names)}"
        raise UserError(problem, f"use {'best, or ' if key == 'submit' else ''}one of {', '.join(names)}")
    return wanted


def describe_found(
    found: Sequence[Instances], who: str, key: str, classes: Sequence[str] = (), where: str = "validation images"
) -> str:
    """Say how many cells a model finds in the validation images; that it finds none, where a training was too short.

    Parameters
    ----------
    found : list of Instances
        One per image.
    who : str
        The model in words.
    key : str
        The setting that says how long it is trained.
    classes : sequence of str, optional
        Those of them that are never found are named.
    where : str
        What the images are called.

    Examples
    --------
    >>> print(describe_found([Instances.empty((4, 4))], "the detector", "maskrcnn.steps"))
    WARNING: the detector finds NO CELL in the validation images; its score there is 0.000, and the run goes on.
    Train longer (maskrcnn.steps); if that does not help, look at the labels and at the pictures of notebook 01.
    """
    count = sum(map(len, found))
    if not len(found):
        return f"there are no {where} that could tell what {who} finds"
    if count:
        never = [name for k, name in enumerate(classes, 1) if not any((cells.class_ids == k).any() for cells in found)]
        lacking = f"; never found: {', '.join(never)}" if never else ""
        return f"{who} finds {counted(count, 'cell')} in {counted(len(found), where.removesuffix('s'))}{lacking}"
    return (
        f"WARNING: {who} finds NO CELL in the {where}; its score there is 0.000, and the run goes on.\n"
        f"Train longer ({key}); if that does not help, look at the labels and at the pictures of notebook 01."
    )


def of_images(predictions: Mapping[str, Instances], images: CellDataset) -> list[Instances]:
    """Return one model's cells of the given images, in their order; their boxes where the truth is boxes."""
    return images.as_known([predictions[record.image_id] for record in images.records])


def found_in(part: CellDataset, images: CellDataset, found: Sequence[Instances]) -> list[Instances]:
    """Return what a model found in some of the images it predicted, in the order of `part`.

    Parameters
    ----------
    part : CellDataset
    images : CellDataset
        All that were predicted.
    found : list of Instances
        One per image of `images`.
    """
    return of_images(dict(zip([record.image_id for record in images.records], found, strict=True)), part)


def score_models(
    predictions: Mapping[str, Mapping[str, Instances]], truths: Mapping[str, CellDataset]
) -> pandas.DataFrame:
    """Score every model on every truth: `score_table` with the model's name first.

    Parameters
    ----------
    truths : mapping
        Split -> its images, e.g. of `read_truths`. Images whose labels a model proposed are left out; where no other is
        left, the table is empty.

    Returns
    -------
    DataFrame
        model, image_id, cell_type, group, split, class_name, size, threshold, tp, fp, fn. Classes are counted for models
        that know any.

    Raises
    ------
    UserError
        Nothing was predicted, or nothing was labelled.
    """
    import pandas as pd

    if not predictions or not truths:
        what = "prediction" if not predictions else "truth"
        raise UserError(f"there is no {what} to score", "run the stages before this one; they write the files")
    blocks = []
    for model, found in predictions.items():
        for truth in filter(len, without_proposals(truths).values()):
            cells = of_images(found, truth)
            knows = any(x.class_ids.any() for x in cells)
            table = score_table(
                truth.instances, cells, truth.records, classes=truth.classes if knows else (), sizes=True
            )
            table.insert(0, "model", model)
            blocks.append(table)
    if not blocks:
        nothing = score_table([], [], [])
        nothing.insert(0, "model", "")
        return nothing
    return pd.concat(blocks, ignore_index=True)


def summarise(scores: pandas.DataFrame, by: str | None = None, n: int = 1000, seed: int = 0) -> pandas.DataFrame:
    """Return one row per model and split (and part): MAP IoU with its 95 % interval over images.

    Parameters
    ----------
    by : {None, "cell_type", "class_name", "size", "group"}
    """
    import pandas as pd

    numbers = ("images", "score", "low", "high", "ap50", "ap75", "ap90")
    rows = []
    for (model, split), table in scores.groupby(["model", "split"], sort=False):
        part = summary(table, by=by, n=n, seed=seed)
        part.insert(0, "model", model)
        part.insert(1, "split", split)
        rows.append(part.drop(columns="part", errors="ignore"))
    if not rows:
        names = [
            "model",
            "split",
            *([by] if by else []),
            *summary(scores, n=0).columns.drop("part"),
            "ap50",
            "ap75",
            "ap90",
        ]
        return pd.DataFrame({name: pd.Series(dtype=float if name in numbers else object) for name in names})
    return pd.concat(rows, ignore_index=True)


def table_by_line(by_line: pandas.DataFrame, table: pandas.DataFrame) -> pandas.DataFrame:
    """Return one row per split and model: MAP IoU of each cell line, and of all images, so each line by its number of images.

    Parameters
    ----------
    by_line : DataFrame
        ``summarise(scores, "cell_type")``.
    table : DataFrame
        ``summarise(scores)``.

    Examples
    --------
    >>> import pandas as pd
    >>> row = {"model": "a", "split": "val", "images": 2}
    >>> lines = pd.DataFrame([row | {"cell_type": "HEK", "score": 0.5}, row | {"cell_type": "N2a", "score": 0.7}])
    >>> table_by_line(lines, pd.DataFrame([row | {"score": 0.6}])).to_dict("records")
    [{'HEK': 0.5, 'N2a': 0.7, 'all': 0.6}]

    Where a line is called "all" itself, that of all images is "all images".
    """
    rows = ["split", "model"]
    lines = by_line.pivot_table(index=rows, columns="cell_type", values="score", sort=False)
    overall = "all images" if "all" in lines else "all"
    return lines.assign(**{overall: table.set_index(rows)["score"]}).rename_axis(columns=None)


def rejected_models(checkpoints: Mapping[str, Path]) -> list[str]:
    """Return the names of the models that 03 did not keep: of base and tuned the one that is not ``cellpose_checkpoint``.

    Parameters
    ----------
    checkpoints : mapping
        ``run.find_all("cellpose_*checkpoint")``.

    Examples
    --------
    >>> base, tuned = Path("base.safetensors"), Path("tuned.safetensors")
    >>> rejected_models({"cellpose_checkpoint": base, "cellpose_base_checkpoint": base, "cellpose_tuned_checkpoint": tuned})
    ['cellpose_tuned']
    """
    kept = checkpoints.get("cellpose_checkpoint")
    judged = ("cellpose_base", "cellpose_tuned")
    return [name for name in judged if kept is not None and checkpoints.get(f"{name}_checkpoint", kept) != kept]


def choose_model(
    scores: pandas.DataFrame,
    predictions: Mapping[str, Any],
    truth: CellDataset,
    wanted: str,
    rejected: Sequence[str] = (),
) -> str:
    """Return the model that is handed in, and say who decided: a setting, or validation images that chose no weights.

    Parameters
    ----------
    scores : DataFrame
        From `score_models`.
    predictions : mapping
        By model.
    truth : CellDataset
        The validation images that may decide; where none can, see `unjudged`.
    wanted, rejected
        As in `decide`.
    """
    deciding = judges(truth).records
    if deciding:
        ranked = summarise(scores[scores["image_id"].isin([record.image_id for record in deciding])], n=0)
        best = decide(ranked, wanted, deciding[0].split, rejected)
    else:
        best = unjudged(predictions, wanted, rejected)
    kept_out = ", ".join(rejected) or "none"
    LOG.info(f"handed in: {best} ({who_decided(truth, wanted)['in_words']}; not kept by 03: {kept_out})")
    return best


def decide(table: pandas.DataFrame, wanted: str, split: str, rejected: Sequence[str] = ()) -> str:
    """Return the model that is handed in: the one named, or the best by MAP IoU on the deciding split.

    A teacher is no candidate unless it is named: labels that were corrected began as its proposals, and flatter it.

    Parameters
    ----------
    table : DataFrame
        From `summarise`.
    wanted : str
        A model's name (one that was rejected too), or "best".
    rejected : sequence of str
        Models that an earlier stage judged and did not keep: none of them is the best.

    Raises
    ------
    UserError
        The model named was not run, or no image of the split has truth.
    """
    names = list(dict.fromkeys(table["model"]))
    if wanted != "best":
        return check_submit(wanted, names)
    candidates = table[(table["split"] == split) & ~table["model"].isin([*rejected, TEACHER])]
    if candidates.empty:
        raise UserError(
            f"no image of the split '{split}' has truth to decide by", "set evaluate.submit to a model's name"
        )
    return str(candidates.sort_values("score", ascending=False, kind="stable")["model"].iloc[0])


def attribute_errors(truth: CellDataset, found: Mapping[str, Instances]) -> pandas.DataFrame:
    """Say where one model's score is lost, image by image: see `cellkit.scores.attribution.attribute`.

    Parameters
    ----------
    truth : CellDataset
    found : mapping
        The model's cells by image_id.
    """
    return attribute(truth.instances, of_images(found, truth), truth.records)


def write_summary(path: str | Path, truths: Mapping[str, CellDataset], **tables: Any) -> Path:
    """Write what the evaluation found as JSON: which model is best, tables as lists of rows, and why there is no accuracy.

    Parameters
    ----------
    truths : mapping
        From `read_truths`; no image in any = no accuracy can be told, and the file says so.
    tables : Any
        "best" (a model's name), "decided" (from `who_decided`), "classes" (from `classes_found`), "namer" (whose classes are
        counted), "scores" (from `summarise`), and what else is worth keeping.
    """
    return write_json(
        path, plain(tables | ({} if any(map(len, truths.values())) else {"no_accuracy": NO_ACCURACY})), indent=1
    )


def plain(value: Any) -> Any:
    """Return tables as lists of rows, and undefined numbers as None: what JSON can hold.

    Examples
    --------
    >>> plain({"score": float("nan"), "names": ("a", "b")})
    {'score': None, 'names': ['a', 'b']}
    """
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return plain(value.to_dict("records"))
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_ceiling(backend: ModuleType, train: CellDataset, config: Any) -> str:
    """Say how well labels survive as the targets of a network: what is lost there no training can win.

    Parameters
    ----------
    backend : module of cellkit.models
    train : CellDataset
    config : TrainSettings

    Raises
    ------
    UserError
        They score less than `LEAST_CEILING` against themselves.
    """
    ceiling = if_able(backend, "ceiling", train, config)
    if ceiling is None:
        return "it has no targets to lose cells"
    if not ceiling > LEAST_CEILING:
        problem = f"the targets lose cells: {ceiling:.3f}, not {LEAST_CEILING}"
        raise UserError(problem, "check finetune.diameter_px and the labels")
    return f"decode(encode(labels)) scores {ceiling:.3f} against the labels"
