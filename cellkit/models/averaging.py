"""The exponential average of a network's weights while it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Average:
    """An exponential average of all floating-point weights of a network, the statistics of its batch normalisation among them.

    The weights of step t count (1 - 1/steps) to the power of how many steps ago they were, and these shares sum to 1: after the
    first step the average is the weights of that step, after few steps about their mean. The weights that training began from
    do not count. Source of that correction: Kingma and Ba, "Adam", ICLR 2015, section 3; of the average: Polyak and Juditsky,
    "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 1992.

    Parameters
    ----------
    model : torch.nn.Module
    steps : int
        Over which is averaged; 0 = there is no average, and nothing is done.

    Attributes
    ----------
    mean : dict of str to torch.Tensor
    taken : int
        Steps that the average is of.
    """

    def __init__(self, model: torch.nn.Module, steps: int):
        live = {key: value for key, value in model.state_dict().items() if value.is_floating_point()} if steps else {}
        self.live, self.steps, self.taken = live, steps, 0  # the tensors of a state dict are the model's own
        self.mean = {key: value.clone() for key, value in live.items()}

    def update(self) -> None:
        """Take the weights as they are now into the average."""
        if not self.steps:
            return
        self.taken += 1
        kept = 1 - 1 / self.steps
        share = (1 - kept) / (1 - kept**self.taken)
        for key, value in self.mean.items():
            value.lerp_(self.live[key], share)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the model have the average for its weights; afterwards it has its own again."""
        own = {key: value.clone() for key, value in self.live.items()}
        self.put()
        try:
            yield
        finally:
            for key, value in own.items():
                self.live[key].copy_(value)

    def put(self) -> None:
        """Give the model the average for its weights."""
        for key, value in self.mean.items():
            self.live[key].copy_(value)
