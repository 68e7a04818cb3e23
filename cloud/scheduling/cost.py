"""The cost of a batch, learnt while serving: a straight line in its size, and each size's own."""

import math
from dataclasses import dataclass

EFFICIENT = 1.1
"""A batch is efficient if an ROI in it costs at most this many times one in the best batch."""

STALL = 4.0
"""A longer batch than this many times its bound is a stall: it counts as this long.

A machine that is really that much slower is learnt within a few batches.
"""

OWN = 2.0
"""A time counts as at most this many times that of the line for its size, and at least 1 / this."""

LINE_WEIGHT = 0.25
"""Weight of the line beside a size's own time, in batches of that size."""


class CostModel:
    """Seconds of a batch over its size, by weighted least squares that forgets old batches.

    The line is t = a n + b. An engine runs some sizes better than others: the mean time of a size's
    own batches counts before the line, but less the longer ago they were. Each new batch multiplies
    the weight of all earlier ones by ``memory``: at 0.95 about the last twenty count. Until the
    first batch is seen every estimate is 0: no ROI is refused before the first measurement.
    """

    def __init__(self, memory: float = 0.95) -> None:
        self._memory = memory
        # weighted sums over batches: of 1, n, t, n², n t; and the weighted mean square overrun
        self._weight = self._n = self._t = self._nn = self._nt = self._overrun = 0.0
        # of each size: the same sums of 1 and t
        self._own: dict[int, tuple[float, float]] = {}
        # derived from the sums in `observe`: they are read far more often than they change
        self._fixed_s = self._per_roi_s = 0.0
        self._margin = 1.0
        self._efficient_sizes: dict[int, int] = {}
        self._estimates_s: dict[int, float] = {}

    def observe(self, n: int, took_s: float) -> None:
        """Learn that a batch of ``n`` ROIs took ``took_s`` seconds."""
        keep = self._memory
        # the overrun is measured against what was expected before this batch, stalls capped
        expected_s = self.estimate_s(n)
        if expected_s > 0.0:
            took_s = min(took_s, STALL * self.bound_s(n))
        overrun = max(0.0, took_s / expected_s - 1.0) if expected_s > 0.0 else 0.0
        self._overrun = self._overrun * keep + overrun**2 * (1.0 - keep)
        # fade the sums, add the new batch, and derive the line and the margin again
        self._weight = self._weight * keep + 1.0
        self._n = self._n * keep + n
        self._t = self._t * keep + took_s
        self._nn = self._nn * keep + n * n
        self._nt = self._nt * keep + n * took_s
        self._fixed_s, self._per_roi_s = self._fit()
        self._own = {size: (w * keep, t * keep) for size, (w, t) in self._own.items()}
        (weight, total_s), line_s = self._own.get(n, (0.0, 0.0)), self._line_s(n)
        self._own[n] = weight + 1.0, total_s + min(max(took_s, line_s / OWN), line_s * OWN)
        self._margin = 1.0 + min(2.0 * math.sqrt(self._overrun), 1.0)  # at most twice the estimate
        self._efficient_sizes, self._estimates_s = {}, {}

    @property
    def line(self) -> tuple[float, float]:
        """Seconds of a batch whatever its size, and seconds of each ROI in it."""
        return self._fixed_s, self._per_roi_s

    def estimate_s(self, n: int) -> float:
        """Return the expected seconds of a batch of ``n`` ROIs; 0 for none."""
        if n not in self._estimates_s:
            weight, total_s = self._own.get(n, (0.0, 0.0))
            total_s += LINE_WEIGHT * self._line_s(n)
            self._estimates_s[n] = total_s / (weight + LINE_WEIGHT)
        return self._estimates_s[n]

    def _line_s(self, n: int) -> float:
        return self._fixed_s + self._per_roi_s * n if n else 0.0

    def bound_s(self, n: int) -> float:
        """Return seconds that a batch of ``n`` seldom exceeds: two RMS overruns above expected."""
        return self.estimate_s(n) * self._margin

    def efficient_size(self, most: int) -> int:
        """Return the smallest size, up to ``most``, at which an ROI costs hardly more than at best.

        A larger batch would only delay its first ROI. If only one size was seen recently, return
        another, ``most`` or half of it, so that the effect of the size is measured.
        """
        if most not in self._efficient_sizes:
            self._efficient_sizes[most] = self._find_efficient_size(most)
        return self._efficient_sizes[most]

    def _find_efficient_size(self, most: int) -> int:
        # the sizes seen vary too little for the slope: they were about one size. Try the full
        # size if that was small, half of it otherwise
        if self._variance() <= 0.004 * most**2:
            return most if 2 * self._n <= most * self._weight else (most + 1) // 2
        each_s = [self.estimate_s(n) / n for n in range(1, most + 1)]
        return next(n for n, one_s in enumerate(each_s, 1) if one_s <= EFFICIENT * min(each_s))

    def _variance(self) -> float:
        weight = self._weight or 1.0  # without a batch all sums are 0
        return self._nn / weight - (self._n / weight) ** 2

    def _fit(self) -> tuple[float, float]:
        """Return intercept and slope, neither of them negative."""
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        if (variance := self._variance()) > 1e-9:
            slope = (self._nt / self._weight - mean_n * mean_t) / variance
            if slope < 0.0:  # larger batches were faster: take the mean whatever the size
                return mean_t, 0.0
            if (intercept := mean_t - slope * mean_n) >= 0.0:
                return intercept, slope
        # one size only, or a negative intercept: a line through the origin
        return 0.0, self._nt / self._nn


@dataclass(frozen=True)
class BatchTiming:
    """How long batches of at most ``max_batch`` ROIs take, as learnt.

    ``latency`` is from a batch's start to its results. ``interval`` is from its start until the
    next batch may start: the same in a single stage, shorter in a pipeline.
    """

    latency: CostModel
    interval: CostModel
    max_batch: int
