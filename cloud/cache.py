"""The verdict cache: an ROI that is sent again is answered without being read again."""

import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from protos.deadline import Clock, Deadline
from protos.messages import Verdict


@dataclass(frozen=True)
class CacheKey:
    """What makes two ROIs the same: the study, the number in it, and the content."""

    study_key: str
    roi_id: int
    checksum: bytes


class VerdictCache:
    """The last ``size`` verdicts, each for ``ttl_s`` seconds."""

    def __init__(self, size: int, ttl_s: float, clock: Clock = time.monotonic) -> None:
        self._size, self._ttl_s, self._clock = size, ttl_s, clock
        self._verdicts: OrderedDict[CacheKey, tuple[Deadline, Verdict]] = OrderedDict()
        # the newest key of each study: when that is evicted, nothing of the study is left
        self._newest: dict[str, CacheKey] = {}

    def get(self, key: CacheKey) -> Verdict | None:
        """Return the cached verdict, with no queue and compute time, or None."""
        expiry, verdict = self._verdicts.get(key, (None, None))
        if expiry is None or verdict is None or expiry.passed:
            return None
        return replace(verdict, queue_s=0.0, compute_s=0.0)

    def count(self, study_key: str) -> int:
        """Return how many verdicts of a study are cached."""
        if study_key not in self._newest:
            return 0
        keys = (key for key in self._verdicts if key.study_key == study_key)
        return sum(self.get(key) is not None for key in keys)

    def put(self, key: CacheKey, verdict: Verdict) -> None:
        """Cache ``verdict``, and evict the oldest ones beyond the size."""
        self._verdicts.pop(key, None)
        self._verdicts[key] = (Deadline.after(self._ttl_s, self._clock), verdict)
        self._newest[key.study_key] = key
        while len(self._verdicts) > self._size:
            oldest, _ = self._verdicts.popitem(last=False)
            if self._newest[oldest.study_key] == oldest:
                del self._newest[oldest.study_key]
