"""A picture that is looked at flipped, too: every box, score and mask is the mean of what is said in each flip.

Proposals of all flips are taken together; box regression, scores and mask probabilities are means at the same proposals and
boxes. Source of the idea: the eleventh place of Kaggle's Sartorius competition (TheoViel, 2021), who took means at these three
places. A pixel covers [column, column + 1), so a box is flipped exactly about the middle of the picture; where pixels stand for
their middles or corners, as in a map of features, it would have to be moved by half of one.

The flips of one picture are a batch: the k-th is flipped left to right where k is odd, and up and down where k is 2 or 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def flips_of(picture: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Return the first `count` flips of a picture (..., H, W), which itself is the first."""
    return [flip(picture, k) for k in range(count)]


def flip(picture: torch.Tensor, k: int) -> torch.Tensor:
    """Return the k-th flip of (..., H, W); done twice, it is as before.

    Examples
    --------
    >>> [flip(torch.tensor([[1, 2], [3, 4]]), k).tolist() for k in range(4)]
    [[[1, 2], [3, 4]], [[2, 1], [4, 3]], [[3, 4], [1, 2]], [[4, 3], [2, 1]]]
    """
    return picture.flip([axis for bit, axis in ((1, -1), (2, -2)) if k & bit])


def flip_boxes(boxes: torch.Tensor, k: int, shape: tuple[int, int]) -> torch.Tensor:
    """Return where boxes (N, 4) xyxy in px of a picture of that height and width lie in its k-th flip.

    Examples
    --------
    >>> flip_boxes(torch.tensor([[1.0, 2, 4, 8]]), 3, (10, 20)).tolist()
    [[16.0, 2.0, 19.0, 8.0]]
    """
    left, top, right, bottom = boxes.unbind(1)
    if k & 1:
        left, right = shape[1] - right, shape[1] - left
    if k & 2:
        top, bottom = shape[0] - bottom, shape[0] - top
    return torch.stack([left, top, right, bottom], dim=1)


def together(proposals: Sequence[torch.Tensor], shape: tuple[int, int]) -> list[torch.Tensor]:
    """Return the proposals of all flips, as boxes of each of them."""
    every = torch.cat([flip_boxes(boxes, k, shape) for k, boxes in enumerate(proposals)])
    return [flip_boxes(every, k, shape) for k in range(len(proposals))]


def mean_boxes(boxes: Sequence[torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
    """Return the means, (N, 4), of the same boxes in each flip."""
    return torch.stack([flip_boxes(one, k, shape) for k, one in enumerate(boxes)]).mean(dim=0)


def mean_maps(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the means of maps (..., m, m) of the same boxes in each flip."""
    return torch.stack([flip(one, k) for k, one in enumerate(maps)]).mean(dim=0)
