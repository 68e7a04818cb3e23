"""Measurements that grow old, and the quantiles of what is still worth believing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

MEMORY = 64
HALF_LIFE_S = 600.0
PRIOR_WEIGHTS = (0.3, 0.2)  # of the median, so that little moves it, and of the slow tail


class Evidence:
    """Running weighted quantiles of one quantity.

    A measurement weighs 1 when it is made and half as much every ``half_life_s``. What is
    believed before the first is ``prior``, the median and the 95th percentile; together they
    always weigh half a fresh measurement, so that what is not measured again is forgotten.
    """

    def __init__(
        self,
        prior: tuple[float, float],
        clock: Callable[[], float],
        half_life_s: float = HALF_LIFE_S,
    ) -> None:
        self._prior, self._clock, self._half_life_s = prior, clock, half_life_s
        self._seen: deque[tuple[float, float]] = deque(maxlen=MEMORY)

    def add(self, value: float) -> None:
        """Takes in one measurement, made now."""
        self._seen.append((self._clock(), value))

    def quantile(self, q: float) -> float:
        """The smallest value that the next measurement does not exceed with a chance of ``q``.

        In expectation, as for the ``q (n + 1)``-th of ``n``; the median is that of the weights.
        """
        now = self._clock()
        weights = [2 ** ((at_s - now) / self._half_life_s) for at_s, _ in self._seen]
        values = np.array([*(value for _, value in self._seen), *self._prior])
        order = np.argsort(values)
        reached = np.cumsum(np.array([*weights, *PRIOR_WEIGHTS])[order])
        # rounding up to a whole measurement gives half of one already
        wanted = q * reached[-1] + (q - 0.5) * min(1.0, sum(weights))
        first = int(np.searchsorted(reached, min(wanted, reached[-1]) - 1e-9))
        return float(values[order[first]])
