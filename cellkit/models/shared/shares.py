"""What the processes of a training share beside batches: gradients are summed, norms averaged, images dealt out.

In a training of one process nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cellkit.models.shared.processes import place, summed

if TYPE_CHECKING:
    import numpy as np
    import torch

T, R = TypeVar("T"), TypeVar("R")


class InShares:
    """Step number -> loss of a batch of which each process has its share; the gradients of all are left in the parameters.

    Parameters
    ----------
    loss_at : callable
        Step number -> this process's share of the loss, a scalar tensor: the shares of all add up to that of the batch.
    network : torch.nn.Module
        Its parameters are trained. Norms that are trained look at the crops of their own process; what they have learned
        of means and variances is averaged after each step, so that all processes have the same network.
    """

    def __init__(self, loss_at: Callable[[int], torch.Tensor], network: Any):
        self.loss_at, self.network = loss_at, network

    def __call__(self, step: int) -> torch.Tensor:
        """Return the loss of a step, and leave its gradients: the tensor itself needs none."""
        share = self.loss_at(step)
        if share.requires_grad:
            share.backward()
        loss = share.detach().clone()
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        sum_gradients(loss, trained)
        average_norms(self.network)
        return loss


def in_shares(loss_at: Callable[[int], torch.Tensor], network: Any) -> Callable[[int], torch.Tensor]:
    """Return the loss of a training's steps, see `InShares`; of one process as it is."""
    return loss_at if place()[1] == 1 else InShares(loss_at, network)


def as_many() -> tuple[int, ...]:
    """Return how many processes there are, for the fingerprint of a training that draws otherwise in several; () of one."""
    return (place()[1],) if place()[1] > 1 else ()


def sum_gradients(loss: torch.Tensor, trained: Sequence[torch.nn.Parameter]) -> None:
    """Add up a loss and the gradients of parameters over all processes, in place.

    A parameter that has a gradient in no process keeps none: the optimiser leaves it as it is.
    """
    if place()[1] == 1:
        return
    import torch

    touched = torch.tensor([float(one.grad is not None) for one in trained], device=loss.device)
    summed([touched])
    reached = [one for one, count in zip(trained, touched.tolist(), strict=True) if count]
    for parameter in reached:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    summed([loss, *(parameter.grad for parameter in reached)])


def average_norms(network: Any) -> None:
    """Average over all processes, in place, what the norms of a network have learned of means and variances."""
    import torch

    count = place()[1]
    if count == 1:
        return
    norms = [one for one in network.modules() if one.training and getattr(one, "running_mean", None) is not None]
    learned = [getattr(one, name) for one in norms for name in ("running_mean", "running_var")]
    if learned:
        together = torch.cat([one.flatten() for one in learned])
        summed([together])
        for one, mean in zip(learned, (together / count).split([x.numel() for x in learned]), strict=True):
            one.copy_(mean.view_as(one))


def own_rows(array: np.ndarray) -> np.ndarray:
    """Return which rows of an array (N, ...) are this process's."""
    rank, count = place()
    return array[rank::count]


def own_share(whole: int) -> int:
    """Return how many of so many things are this process's, one at least.

    Examples
    --------
    >>> own_share(48)
    48
    """
    rank, count = place()
    return max(len(range(rank, whole, count)), 1)


def all_shares(whole: int) -> int:
    """Return how many things all processes have together, see `own_share`: more than there are where there are few.

    Examples
    --------
    >>> all_shares(48)
    48
    """
    return max(whole, place()[1])


def total(number: int, device: Any) -> float:
    """Return the sum of a number over all processes."""
    if place()[1] == 1:
        return float(number)
    import torch

    added = torch.tensor([float(number)], device=device)
    summed([added])
    return float(added)


def dealt_out(items: Sequence[T], do: Callable[[T], R], desc: str = "") -> list[R]:
    """Return what is made of each of some items, in order: each process does its share, and all have all results.

    Parameters
    ----------
    do : callable
        Item -> what can be pickled; of the same item the same in every process.
    desc : str
        What is being done, where that is to be said on the way.

    Examples
    --------
    >>> dealt_out([1, 2, 3], str)
    ['1', '2', '3']
    """
    from cellkit.parallel import progress

    rank, count = place()
    own = items[rank::count]
    own = [do(item) for item in (progress(own, desc) if desc else own)]
    if count == 1:
        return own
    from torch.distributed import all_gather_object

    every: list[list[R]] = [[] for _ in range(count)]
    all_gather_object(every, own)
    return [every[k % count][k // count] for k in range(len(items))]
