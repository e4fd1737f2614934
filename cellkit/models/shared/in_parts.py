"""A batch that goes forth and back through a network part by part, as much at a time as the memory holds.

The gradients of the parts are summed, so that the step is that of the whole batch, whatever the parts are, and however many
processes share it. That holds where the network draws nothing at random itself; dropout draws anew for each part.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cellkit.errors import UserError, counted
from cellkit.log import LOG
from cellkit.models.shared.flow_loss import Crop, FlowLoss, flow_loss
from cellkit.models.shared.processes import place
from cellkit.models.shared.shares import sum_gradients

if TYPE_CHECKING:
    import torch


class Part(NamedTuple):
    """Which crops of a batch, and which square of each.

    Parameters
    ----------
    crops : (b,) int
    y_px, x_px : int
        Upper left corner of the square.
    size_px : int
        Its height and width.
    """

    crops: np.ndarray
    y_px: int
    x_px: int
    size_px: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """Cut it from an array (B, ..., s, s)."""
        rows, columns = slice(self.y_px, self.y_px + self.size_px), slice(self.x_px, self.x_px + self.size_px)
        return np.ascontiguousarray(array[self.crops][..., rows, columns])


class InParts:
    """Step number -> loss of its batch, whose gradients are left in the parameters: the tensor itself needs none.

    Where a part is too large for the memory, half as many crops are taken at a time from there on, which changes the result by
    rounding alone (and, where there is dropout, what it draws); where one crop is, it is cut into tiles, which then do not see
    each other.

    Parameters
    ----------
    loss_at : FlowLoss
        Draws the batches; its network is applied.
    most : int
        Crops at a time, to begin with.
    least_px : int
        Height and width of the smallest tile that a crop may be cut into.
    remedy : str
        What to do where not even that fits.
    whole : bool
        Each process's share goes through as one: where norms look at the batch. Then a memory that is short ends the training.
    forward : callable, optional
        (planes (b, C, s, s) on the device, Part, step) -> maps (b, 3, s, s); the network alone unless given.

    Attributes
    ----------
    most, tile_px : int
        Crops at a time, and height and width of a tile, as they are now.
    """

    def __init__(
        self,
        loss_at: FlowLoss,
        most: int,
        least_px: int,
        remedy: str,
        forward: Callable[[torch.Tensor, Part, int], torch.Tensor] | None = None,
        whole: bool = False,
    ):
        self.loss_at, self.network, self.least_px, self.remedy = loss_at, loss_at.network, least_px, remedy
        self.whole = whole
        self.most, self.tile_px = min(most, loss_at.batch_size), loss_at.crop_px
        self.forward = forward or (lambda planes, part, step: self.network(planes))

    def __call__(self, step: int) -> torch.Tensor:
        """Return the loss of a step, and leave its gradients.

        Raises
        ------
        UserError
            Not even one of the smallest tiles fits the memory.
        """
        import torch

        batch = self.loss_at.drawn(step)
        while True:
            try:
                loss = self._forth_and_back(batch, step)
                break
            except torch.OutOfMemoryError as error:
                problem = str(error).splitlines()[0]
            self._take_less(problem)  # here the failed step, which the error held on to, is gone
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        for parameter in trained:  # that no crop went through, of this process's share or of the whole batch
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        sum_gradients(loss, trained)
        return loss

    def parts(self, crops: int) -> Iterator[Part]:
        """Yield the parts of this process's share of a batch of so many crops."""
        rank, count = place()
        own, corners = np.arange(rank, crops, count), range(0, self.loss_at.crop_px, self.tile_px)
        for first in range(0, len(own), self.most):
            for y in corners:
                for x in corners:
                    yield Part(own[first : first + self.most], y, x, self.tile_px)

    def _forth_and_back(self, batch: Crop, step: int) -> torch.Tensor:
        import torch

        arithmetic = self.network.arithmetic
        whole = batch.target[:, 0].size if batch.known is None else max(batch.known.sum(), 1)
        loss = torch.zeros((), device=arithmetic.device)
        for part in self.parts(len(batch.planes)):
            known = None if batch.known is None else part.of(batch.known)
            target = part.of(batch.target)
            share = (target[:, 0].size if known is None else known.sum()) / whole
            if not share and not self.whole:
                continue
            planes, target, known = (
                None if one is None else torch.from_numpy(one).to(arithmetic.device)
                for one in (part.of(batch.planes), target, known)
            )
            with arithmetic.autocast():
                maps = self.forward(planes, part, step)
            of_part = flow_loss(maps.float(), target, known) * float(share)
            if of_part.requires_grad:
                of_part.backward()
            loss += of_part.detach()
        return loss

    def _take_less(self, problem: str) -> None:
        """Take half as much at a time from now on, and forget the gradients of the step that failed."""
        import torch

        for parameter in self.network.parameters():
            parameter.grad = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.whole:
            raise UserError(f"the memory does not hold a process's share of a batch: {problem}", self.remedy)
        if self.most > 1:
            self.most = (self.most + 1) // 2
            what = f"{counted(self.most, 'crop')} at a time, the batch stays {self.loss_at.batch_size}"
        elif self.tile_px // 2 >= self.least_px:
            self.tile_px //= 2
            what = f"crops of {self.loss_at.crop_px} px in tiles of {self.tile_px} px"
        else:
            raise UserError(f"the memory does not hold one training tile of {self.tile_px} px: {problem}", self.remedy)
        LOG.warning(f"out of memory, so from here on {what}")
