"""Measurements that grow old, and the quantiles of what is still worth believing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

MEMORY = 64
FORGIVEN, FORGIVEN_LATEST = 5, 20
"""So many measurements outweigh one bound, and any number: one in 20 is what the slow tail is."""
HALF_LIFE_S = 600.0
PRIOR_WEIGHTS = (0.3, 0.2)  # of the median, so that little moves it, and of the slow tail


@dataclass(frozen=True)
class _Seen:
    """A measurement, or what one would at least have been: a bound."""

    at_s: float
    value: float
    is_bound: bool = False


class Evidence:
    """Running weighted quantiles of one quantity.

    A measurement weighs 1 when it is made and half as much every ``half_life_s``. What is
    believed before the first is ``prior``, the median and the 95th percentile; together they
    always weigh half a fresh measurement, so that what is not measured again is forgotten.

    Where an answer did not come only a bound is known. It counts like a measurement, but no more
    once `FORGIVEN` measurements for each bound have come since the last, `FORGIVEN_LATEST` at
    most: what happened once is soon forgiven, what goes on is believed.
    """

    def __init__(
        self,
        prior: tuple[float, float],
        clock: Callable[[], float],
        half_life_s: float = HALF_LIFE_S,
    ) -> None:
        self._prior, self._clock, self._half_life_s = prior, clock, half_life_s
        self._seen: deque[_Seen] = deque(maxlen=MEMORY)

    @property
    def measured(self) -> bool:
        """Whether anything was."""
        return any(not seen.is_bound for seen in self._seen)

    def add(self, value: float) -> None:
        """Takes in one measurement, made now."""
        self._seen.append(_Seen(self._clock(), value))

    def add_bound(self, value: float) -> None:
        """Takes in that it is more than ``value`` now."""
        self._seen.append(_Seen(self._clock(), value, is_bound=True))

    def quantile(self, q: float) -> float:
        """The smallest value that the next measurement does not exceed with a chance of ``q``.

        In expectation, as for the ``q (n + 1)``-th of ``n``; the median is that of the weights.
        """
        believed = self._believed()
        weights = self._weights(believed)
        values = np.array([*(seen.value for seen in believed), *self._prior])
        order = np.argsort(values)
        reached = np.cumsum(np.array([*weights, *PRIOR_WEIGHTS])[order])
        # rounding up to a whole measurement gives half of one already
        wanted = q * reached[-1] + (q - 0.5) * min(1.0, sum(weights))
        first = int(np.searchsorted(reached, min(wanted, reached[-1]) - 1e-9))
        return float(values[order[first]])

    def _believed(self) -> Sequence[_Seen]:
        """All but bounds that were outweighed since."""
        measured = [seen for seen in self._seen if not seen.is_bound]
        bounds = len(self._seen) - len(measured)
        since = len(list(takewhile(lambda seen: not seen.is_bound, reversed(self._seen))))
        return self._seen if since < min(FORGIVEN * bounds, FORGIVEN_LATEST) else measured

    def _weights(self, seen: Sequence[_Seen]) -> list[float]:
        now_s = self._clock()
        return [2.0 ** ((one.at_s - now_s) / self._half_life_s) for one in seen]
