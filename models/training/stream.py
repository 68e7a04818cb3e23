"""An endless stream of batches, drawn by other processes while the network trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

Batch = dict[str, torch.Tensor]
Draw = Callable[[np.random.Generator], Batch]


def batches(draw: Draw, size: int, *, workers: int, seed: int) -> Iterator[Batch]:
    """Batches of ``size`` of what ``draw`` gives, by ``workers`` processes (0: in this one)."""
    ahead = 6 if workers else None
    yield from DataLoader(_Stream(draw, seed), size, num_workers=workers, prefetch_factor=ahead)


class _Stream(IterableDataset[Batch]):
    def __init__(self, draw: Draw, seed: int) -> None:
        self._draw, self._seed = draw, seed

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        if info is not None:
            cv2.setNumThreads(0)
            os.nice(6)  # the loaders leave the cores to the training
        rng = np.random.default_rng((self._seed, info.id if info else 0))
        while True:
            yield self._draw(rng)
