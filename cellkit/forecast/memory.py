"""Memory that a stage holds at most: its process, the images it keeps, a training step, the largest image; times processes."""

from __future__ import annotations

from cellkit.forecast.costing import course_of, told
from cellkit.forecast.images import RunImages
from cellkit.forecast.speed import Speed
from cellkit.models.gate import CROSS_FITTING, IN_QUARTERS
from cellkit.models.shared.contract import Schedule
from cellkit.models.shared.cost import BATCH

NOTEBOOK_BYTES = 90e6  # of a kernel and the pictures it draws, beside what is timed
KEPT_BYTES = 28  # of a pixel of a training image, unless the backend says otherwise
ADAM_BYTES = 12  # of a number that is trained: its gradient, and what the optimiser keeps of it
CONVERT_BYTES = 32  # of a pixel of the image that is converted: planes of two channels, the picture, its quality
WORKER_BYTES = 250e6  # of a process that shares a loop: Python and what it imports
UNTRAINED = ("coco", "evaluate")


def bytes_of_stage(run: RunImages, section: str, speed: Speed) -> tuple[float, float]:
    """Return the most memory that a stage holds, of this computer and of its GPU; workers are counted with their images.

    A stage holds at least what timing its backend held; on top come more crops in a step, the images that are kept, and what
    finding the cells of the largest image takes.
    """
    cfg, began = run.section(section), speed.start_bytes + NOTEBOOK_BYTES
    largest = max(run.px, default=0)
    if section == "convert":
        processes = run.processes(section)
        return began + CONVERT_BYTES * largest * max(processes, 1) + WORKER_BYTES * processes, 0.0
    if section in UNTRAINED or section != "label" and not isinstance(cfg, Schedule):  # nothing is trained step by step
        return began, 0.0
    on_gpu, held, of_step, ranks = speed.cost.device == "cuda", began, 0.0, getattr(cfg, "gpus", 1)
    sampled = max(speed.sample_bytes - speed.start_bytes, 0)
    if section != "label":
        folds = section == "finetune" and run.regime.name in (CROSS_FITTING, IN_QUARTERS)
        of_step = speed.cost.step_bytes * at_once(cfg)
        kept, most = told(cfg, "KEPT_BYTES", KEPT_BYTES), course_of(cfg, run.count("train")).most_mpx
        held += kept * 1e6 * min(run.mpx(section, *(("train", "val") if folds else ("train",))), most)
        held += sampled if on_gpu else max(of_step, sampled + speed.cost.step_bytes * (at_once(cfg) - BATCH))
    alone = bytes_to_find(run, section, speed)
    network = 4 * speed.cost.parameters + (ADAM_BYTES * speed.cost.trained if section != "label" else 0)
    more = 0.0 if on_gpu else network if not sampled else ADAM_BYTES * speed.cost.trained * (section != "label")
    if ranks > 1:  # each with the images and the network; beside them wait the notebook and what starts them
        held += WORKER_BYTES + ranks * (max(held, alone) - NOTEBOOK_BYTES) + (ranks - 1) * more
    held = max(held, alone)
    processes = 0 if on_gpu and run.cfg.cluster.is_none else run.processes(section)  # on a GPU one does it
    held = max(held, alone + processes * (alone - NOTEBOOK_BYTES))  # each with the network, at an image of its own
    return held + more, network + of_step if on_gpu else 0.0


def bytes_to_find(run: RunImages, section: str, speed: Speed) -> float:
    """Return the memory that finding the cells of the largest image takes, with its process."""
    cfg = run.section(section)
    of_px = told(cfg, "BYTES_PER_PX", 0) * (getattr(cfg, "flips", None) or 1)
    sampled = max(speed.sample_bytes - speed.start_bytes, 0)
    return speed.start_bytes + NOTEBOOK_BYTES + sampled + run.largest_bytes(section, of_px)


def at_once(config: Schedule) -> int:
    """Return how many crops of a step a process has in memory together."""
    share = -(-config.batch_size // getattr(config, "gpus", 1))
    return min(share, getattr(config, "at_once", share))
