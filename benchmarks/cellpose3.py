"""Cellpose 3.1.1.3, the last with the U-Net, run beside ours: in a process of its own, since two packages are called cellpose.

`make setup` puts it into `.peers`, without its dependencies, which are ours. A job is this file run with that folder first on
the path: arrays go there and come back as npz, settings as JSON. Benchmarks time it, `tests/models/test_cellpose3.py` compares
networks, styles, diameters and masks.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).resolve().parents[1] / ".peers"
VERSION = "3.1.1.3"
Arrays = dict[str, np.ndarray]


class Found(NamedTuple):
    """What Cellpose finds in one image: labels (H, W) int32, flows y and x (2, H, W), logit (H, W), style (256,), CPU seconds.

    `cpu_s` has one entry per round; flows and logit are empty unless they were asked for.
    """

    labels: np.ndarray
    flows: np.ndarray
    logit: np.ndarray
    style: np.ndarray
    cpu_s: np.ndarray


# ---- here ----------------------------------------------------------------------------------------------------------
def missing() -> str:
    """Return why Cellpose 3 cannot be run, "" where it can."""
    there = (FOLDER / f"cellpose-{VERSION}.dist-info").is_dir()
    return "" if there else f"no cellpose {VERSION} in {FOLDER.name}: make setup"


def save_weights(network: Any, path: Path) -> Path:
    """Write a `CellposeUNet` of the usual widths as the torch file that Cellpose 3 loads."""
    import torch

    torch.save({k: v.detach().float().cpu().contiguous() for k, v in network.state_dict().items()}, path)
    return Path(path)


def shown(image: np.ndarray, channels: str) -> np.ndarray:
    """Return (H, W, 3) uint8 whose green and blue are what our network is shown, for Cellpose's channels [2, 3]."""
    kept = {"both": (1, 2), "cytoplasm": (1,), "nuclei": (2,)}[channels]
    out = np.zeros_like(image)
    out[..., kept] = image[..., kept]
    return out


def evaluate(
    weights: Path,
    images: Sequence[np.ndarray],
    diameter_px: float | Sequence[float],
    maps: bool = False,
    rounds: int = 1,
    mkldnn: bool = False,
    **options: Any,
) -> list[Found]:
    """Run `CellposeModel.eval` on the green and blue of (H, W, 3) images, each at its diameter.

    Parameters
    ----------
    maps : bool
        Return flows and logit too.
    rounds : int
        How often each image is run, to time it; the first round warms up where there are several.
    mkldnn : bool
        As `CellposeModel` has it by default on a CPU: the network is translated anew for every batch, for seconds. The
        numbers are the same to 1e-5; to time Cellpose, time both ways.
    options
        Of `eval`, by its names: flow_threshold, cellprob_threshold, min_size, resample, niter, bsize, max_size_fraction ...
    """
    diameters = np.broadcast_to(np.asarray(diameter_px, float), len(images)).tolist()
    settings = {"weights": str(weights), "diameters": diameters, "maps": maps, "rounds": rounds, "mkldnn": mkldnn}
    settings["options"] = options
    answer = call("evaluate", {f"image_{k}": image for k, image in enumerate(images)}, settings)
    return [Found(*(answer[f"{name}_{k}"] for name in Found._fields)) for k in range(len(images))]


def masks_of(maps: Sequence[np.ndarray], shapes: Sequence[tuple[int, int]], **options: Any) -> list[np.ndarray]:
    """Return what `dynamics.resize_and_compute_masks` makes of (3, h, w) maps, as (H, W) int32.

    Parameters
    ----------
    shapes : sequence of (int, int)
        Of the images: masks are resized to them where the maps are of another size.
    options
        By its names: niter, flow_threshold, cellprob_threshold, min_size, max_size_fraction.
    """
    given = {f"maps_{k}": one for k, one in enumerate(maps)}
    answer = call("masks", given, {"shapes": [list(shape) for shape in shapes], "options": options})
    return [answer[f"labels_{k}"] for k in range(len(maps))]


def diameters_of(cases: Sequence[tuple[Path, Path, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the diameters in px that `SizeModel.eval` gives, and those of the styles alone, (N,) float64 each.

    Parameters
    ----------
    cases : sequence of (Path, Path, (H, W, 3) uint8)
        A network, its size model and an image.
    """
    settings = {"models": [[str(weights), str(size_model)] for weights, size_model, _ in cases]}
    answer = call("diameters", {f"image_{k}": image for k, (*_, image) in enumerate(cases)}, settings)
    return answer["diameters"], answer["of_style"]


def forward(weights: Path, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return maps (B, 3, H, W) and styles (B, 256) of `CPnet` for planes (B, 2, H, W) float32."""
    answer = call("forward", {"planes": planes}, {"weights": str(weights)})
    return answer["maps"], answer["styles"]


def random_model(to: Path, seed: int, diam_mean_px: float) -> tuple[Path, Path]:
    """Let Cellpose save a network of random numbers and a size model to it, each its own way; return both paths."""
    call("random_model", {}, {"to": str(to), "seed": seed, "diam_mean": diam_mean_px})
    return Path(to), Path(f"{to}_size.npy")


def train(
    weights: Path | None,
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    to: Path,
    gpu: bool = False,
    flows: Path | None = None,
    **options: Any,
) -> tuple[Path, Arrays]:
    """Run `train_seg` on (H, W, 3) images and label images; return the weights, and losses, seconds and CPU seconds.

    Parameters
    ----------
    weights : Path or None
        To start from; None: random numbers.
    to : Path
        File of the trained weights.
    gpu : bool
        Train on the GPU.
    flows : Path, optional
        Folder where its targets are kept by their labels, so that trainings on the same images compute them once.
    options
        Of `train_seg`, by its names: n_epochs, learning_rate, weight_decay, batch_size, nimg_per_epoch, min_train_masks ...
    """
    given = {f"image_{k}": image for k, image in enumerate(images)} | {f"labels_{k}": x for k, x in enumerate(labels)}
    settings = {"weights": str(weights) if weights else None, "to": str(to), "gpu": gpu, "options": options}
    settings["flows"] = str(flows) if flows else None
    return Path(to), call("train", given, settings)


def call(job: str, given: Arrays, settings: dict[str, Any]) -> Arrays:
    """Run a job in a process of its own; return its arrays.

    Raises
    ------
    RuntimeError
        It failed: with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "given.npz", **given)
        (Path(folder) / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH", "")])),
            "CELLPOSE_LOCAL_MODELS_PATH": folder,
            "PYTHONWARNINGS": "ignore",
        }
        command = [sys.executable, __file__, job, folder]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"cellpose {VERSION}, {job}: {done.stderr[-2000:]}")
        with np.load(Path(folder) / "answer.npz") as answer:
            return dict(answer)


# ---- there ---------------------------------------------------------------------------------------------------------
def _model(path: str | None, mkldnn: bool = False, gpu: bool = False) -> Any:
    """Return a `CellposeModel` with given weights; it would silently take others where there are none.

    It builds its network at the published widths alone; one of other widths is put in its place.
    """
    import torch
    from cellpose.models import CellposeModel
    from cellpose.resnet_torch import CPnet

    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(path)
    tensors = torch.load(path, weights_only=True) if path is not None else {}
    widths = [len(tensors[f"downsample.down.res_down_{k}.proj.1.weight"]) for k in range(4)] if tensors else []
    if widths in ([], [32, 64, 128, 256]):
        return CellposeModel(gpu=gpu, pretrained_model=path or False, mkldnn=mkldnn)
    model = CellposeModel(gpu=gpu, pretrained_model=False, mkldnn=mkldnn)
    model.net = CPnet([2, *widths], 3, sz=3, mkldnn=model.mkldnn).to(model.device)
    model.net.load_model(path, device=model.device)
    model.diam_mean, model.diam_labels = (getattr(model.net, name).item() for name in ("diam_mean", "diam_labels"))
    return model


def _several(given: Arrays, name: str) -> list[np.ndarray]:
    return [given[f"{name}_{k}"] for k in range(sum(key.startswith(f"{name}_") for key in given))]


def _evaluate(given: Arrays, settings: dict[str, Any]) -> Arrays:
    model, answer = _model(settings["weights"], settings["mkldnn"]), {}
    for k, image in enumerate(_several(given, "image")):
        cpu_s = []
        for _ in range(settings["rounds"]):
            began = time.process_time()
            labels, (_, flows, logit), style = model.eval(
                image, channels=[2, 3], diameter=settings["diameters"][k], **settings["options"]
            )
            cpu_s.append(time.process_time() - began)
        kept = (flows, logit) if settings["maps"] else (np.zeros(0, np.float32),) * 2
        found = Found(labels.astype(np.int32), *kept, style, np.array(cpu_s))
        answer |= {f"{name}_{k}": value for name, value in found._asdict().items()}
    return answer


def _masks(given: Arrays, settings: dict[str, Any]) -> Arrays:
    from cellpose.dynamics import resize_and_compute_masks

    answer = {}
    for k, (maps, shape) in enumerate(zip(_several(given, "maps"), settings["shapes"], strict=True)):
        resize = None if list(maps.shape[1:]) == shape else shape
        labels = resize_and_compute_masks(maps[:2], maps[2], resize=resize, **settings["options"])
        answer[f"labels_{k}"] = labels.astype(np.int32)
    return answer


def _diameters(given: Arrays, settings: dict[str, Any]) -> Arrays:
    from cellpose.models import SizeModel

    images = _several(given, "image")
    models = [SizeModel(_model(weights), pretrained_size=size) for weights, size in settings["models"]]
    found = [model.eval(image, channels=[2, 3]) for model, image in zip(models, images, strict=True)]
    diameters, of_style = ([np.squeeze(one[k]) for one in found] for k in (0, 1))
    return {"diameters": np.array(diameters, float), "of_style": np.array(of_style, float)}


def _forward(given: Arrays, settings: dict[str, Any]) -> Arrays:
    import torch
    from cellpose.resnet_torch import CPnet

    network = CPnet([2, 32, 64, 128, 256], 3, 3)
    network.load_model(settings["weights"])
    with torch.no_grad():
        maps, styles = network.eval()(torch.from_numpy(given["planes"]))[:2]
    return {"maps": maps.numpy(), "styles": styles.numpy()}


def _random_model(given: Arrays, settings: dict[str, Any]) -> Arrays:
    import torch
    from cellpose.resnet_torch import CPnet

    torch.manual_seed(settings["seed"])
    network = CPnet([2, 32, 64, 128, 256], 3, 3, diam_mean=settings["diam_mean"])
    for name, tensor in network.state_dict().items():  # a batch norm that does nothing would hide a wrong one
        if "running_mean" in name or name.endswith(".0.bias"):
            tensor.copy_(0.1 * torch.randn_like(tensor))
        elif "running_var" in name or name.endswith(".0.weight"):
            tensor.copy_(0.75 + 0.5 * torch.rand_like(tensor))
    network.save_model(settings["to"])
    rng = np.random.default_rng(settings["seed"])
    size = {"A": rng.normal(0, 1, 256), "smean": rng.normal(0, 0.05, 256).astype(np.float32)}
    np.save(f"{settings['to']}_size.npy", {**size, "diam_mean": settings["diam_mean"], "ymean": np.float32(0.2)})
    return {}


def _train(given: Arrays, settings: dict[str, Any]) -> Arrays:
    from cellpose.train import train_seg

    model, to = _model(settings["weights"], gpu=settings["gpu"]), Path(settings["to"])
    if settings["gpu"] and model.net.device.type != "cuda":  # it takes the CPU silently
        raise RuntimeError("cellpose finds no GPU")
    labels = _several(given, "labels")
    if settings["flows"]:
        labels = [_targets(one, Path(settings["flows"])) for one in labels]
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), time.process_time()
        path, losses, _ = train_seg(
            model.net,
            train_data=_several(given, "image"),
            train_labels=labels,
            channels=[2, 3],
            save_path=folder,
            model_name=to.name,
            **settings["options"],
        )
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        Path(path).replace(to)
    return {"losses": np.asarray(losses), "seconds": np.array(seconds), "cpu_s": np.array(cpu)}


def _targets(labels: np.ndarray, folder: Path) -> np.ndarray:
    """Return what `train_seg` makes of a label image, (4, H, W) float32: labels, cell or not, flows; made once."""
    import torch
    from cellpose.dynamics import labels_to_flows

    path = folder / f"{hashlib.sha256(repr(labels.shape).encode() + labels.tobytes()).hexdigest()[:24]}.npz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{path.stem}.{os.getpid()}.npz"
        np.savez_compressed(part, target=labels_to_flows([labels.copy()], device=torch.device("cpu"))[0])
        part.replace(path)
    with np.load(path) as kept:
        return kept["target"]


JOBS = {
    "evaluate": _evaluate,
    "masks": _masks,
    "diameters": _diameters,
    "forward": _forward,
    "random_model": _random_model,
    "train": _train,
}


def main() -> None:
    """Do one job for `call`."""
    job, folder = sys.argv[1], Path(sys.argv[2])
    with np.load(folder / "given.npz") as given:
        answer = JOBS[job](dict(given), json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    np.savez(folder / "answer.npz", **answer)


if __name__ == "__main__":
    main()
