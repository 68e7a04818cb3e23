"""What a batch costs, learnt while serving: the time of n ROIs as a straight line in n."""

from __future__ import annotations

import math

WORTH = 1.1
"""A batch is large enough when an ROI in it costs at most this much of one in a full batch."""

MOST_OVERRUN = 1.0
"""No bound is beyond this many times the estimate above it, whatever noise was seen."""

STALL = 4.0
"""A batch that took more than so many times its bound stood still: it counts as having taken that.

What is really slower by so much is learnt in a few batches.
"""

KNOWN = 0.004
"""The line is known where sizes vary by this much: their variance over the largest, squared."""


class CostModel:
    """Weighted least squares of seconds over batch size that forgets what is long past.

    The line is t = a n + b. Each new batch multiplies the weight of all before it by ``memory``:
    at 0.95 about the last twenty count. Until the first batch is seen every estimate is 0:
    nothing is refused on a guess.
    """

    def __init__(self, memory: float = 0.95) -> None:
        self._memory = memory
        self._weight = self._n = self._t = self._nn = self._nt = self._overrun = 0.0
        # what follows from these is asked far more often than it changes
        self._fixed = self._each = 0.0
        self._margin = 1.0
        self._worth: dict[int, int] = {}

    def observe(self, n: int, took_s: float) -> None:
        """Takes in that a batch of ``n`` ROIs took ``took_s`` seconds."""
        keep = self._memory
        expected_s = self.estimate_s(n)
        if expected_s > 0.0:
            took_s = min(took_s, STALL * self.bound_s(n))
        over = max(0.0, took_s / expected_s - 1.0) if expected_s > 0.0 else 0.0
        self._overrun = self._overrun * keep + over**2 * (1.0 - keep)
        self._weight = self._weight * keep + 1.0
        self._n = self._n * keep + n
        self._t = self._t * keep + took_s
        self._nn = self._nn * keep + n * n
        self._nt = self._nt * keep + n * took_s
        self._fixed, self._each = self._line()
        self._margin = 1.0 + min(2.0 * math.sqrt(self._overrun), MOST_OVERRUN)
        self._worth = {}

    @property
    def line(self) -> tuple[float, float]:
        """Seconds of a batch, whatever its size, and of each ROI in it."""
        return self._fixed, self._each

    def estimate_s(self, n: int) -> float:
        """Expected seconds of a batch of ``n`` ROIs; 0 for none."""
        return self._fixed + self._each * n if n else 0.0

    def bound_s(self, n: int) -> float:
        """Seconds that a batch of ``n`` seldom exceeds: two root mean square overruns more."""
        return self.estimate_s(n) * self._margin

    def worth(self, most: int) -> int:
        """The smallest batch in which an ROI costs hardly more than in one of ``most``.

        A larger one would only keep its first waiting for its last. Where one size alone was
        seen of late it is another, large or half as large: so what company is worth is found out.
        """
        if most not in self._worth:
            self._worth[most] = self._size_worth(most)
        return self._worth[most]

    def _size_worth(self, most: int) -> int:
        if self._variance() <= KNOWN * most**2:
            return most if 2 * self._n <= most * self._weight else (most + 1) // 2
        dearest = WORTH * (self._fixed / most + self._each)
        return next((n for n in range(1, most) if self._fixed / n + self._each <= dearest), most)

    def _variance(self) -> float:
        if self._weight == 0.0:
            return 0.0
        return self._nn / self._weight - (self._n / self._weight) ** 2

    def _line(self) -> tuple[float, float]:
        """Intercept and slope, neither negative: no batch pays for another."""
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        if (variance := self._variance()) > 1e-9:
            each = (self._nt / self._weight - mean_n * mean_t) / variance
            if each < 0.0:
                return mean_t, 0.0
            if (fixed := mean_t - each * mean_n) >= 0.0:
                return fixed, each
        return 0.0, self._nt / self._nn
