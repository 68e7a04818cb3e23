"""What a batch costs, learnt while serving: the time of n ROIs as a straight line in n."""

from __future__ import annotations


class CostModel:
    """Weighted least squares of seconds over batch size that forgets what is long past.

    Each new batch multiplies the weight of all before it by ``memory``: at 0.95 about the last
    twenty count. Until the first batch is seen every estimate is 0: nothing is refused on a guess.
    """

    def __init__(self, memory: float = 0.95) -> None:
        self._memory = memory
        self._weight = self._n = self._t = self._nn = self._nt = 0.0

    def observe(self, n: int, took_s: float) -> None:
        """Takes in that a batch of ``n`` ROIs took ``took_s`` seconds."""
        keep = self._memory
        self._weight = self._weight * keep + 1.0
        self._n = self._n * keep + n
        self._t = self._t * keep + took_s
        self._nn = self._nn * keep + n * n
        self._nt = self._nt * keep + n * took_s

    def estimate_s(self, n: int) -> float:
        """Expected seconds of a batch of ``n`` ROIs; 0 for none."""
        if n == 0 or self._weight == 0.0:
            return 0.0
        fixed, each = self._line()
        return fixed + each * n

    def _line(self) -> tuple[float, float]:
        """Intercept and slope, neither negative: no batch pays for another."""
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        variance = self._nn / self._weight - mean_n**2
        if variance > 1e-9:
            each = (self._nt / self._weight - mean_n * mean_t) / variance
            if each < 0.0:
                return mean_t, 0.0
            if (fixed := mean_t - each * mean_n) >= 0.0:
                return fixed, each
        return 0.0, self._nt / self._nn
