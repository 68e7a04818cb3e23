"""The verdict cache: an ROI that is sent again is answered without being read again."""

import time
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace

from protos.deadline import Clock, Deadline
from protos.messages import Verdict

StudyId = tuple[str, str]
"""The site that sent a study, and its key. No site gets the verdicts of another."""

MAX_PER_STUDY = 256
"""Verdicts of one study that are cached: several times what a study may announce."""


@dataclass(frozen=True)
class CacheKey:
    """What makes two ROIs the same: the study, the number in it, and the content."""

    study: StudyId
    roi_id: int
    checksum: bytes


class VerdictCache:
    """The last ``size`` verdicts, each for ``ttl_s`` seconds."""

    def __init__(
        self, size: int = 4096, ttl_s: float = 600.0, clock: Clock = time.monotonic
    ) -> None:
        self._size, self._ttl_s, self._clock = size, ttl_s, clock
        self._verdicts: OrderedDict[CacheKey, tuple[Deadline, Verdict]] = OrderedDict()
        self._by_study: defaultdict[StudyId, dict[CacheKey, None]] = defaultdict(dict)

    def get(self, key: CacheKey) -> Verdict | None:
        """Return the cached verdict, with no queue and compute time, or None."""
        expiry, verdict = self._verdicts.get(key, (None, None))
        if expiry is None or verdict is None or expiry.passed:
            return None
        return replace(verdict, queue_s=0.0, compute_s=0.0)

    def count(self, study: StudyId) -> int:
        """Return how many verdicts of a study are cached."""
        return sum(not self._verdicts[key][0].passed for key in self._by_study.get(study, ()))

    def put(self, key: CacheKey, verdict: Verdict) -> None:
        """Cache ``verdict``; evict the oldest ones beyond the study's share and beyond the size."""
        if key in self._verdicts:
            self._evict(key)
        self._verdicts[key] = (Deadline.after(self._ttl_s, self._clock), verdict)
        own = self._by_study[key.study]
        own[key] = None
        if len(own) > MAX_PER_STUDY:
            self._evict(next(iter(own)))
        while len(self._verdicts) > self._size:
            self._evict(next(iter(self._verdicts)))

    def _evict(self, key: CacheKey) -> None:
        del self._verdicts[key], self._by_study[key.study][key]
        if not self._by_study[key.study]:
            del self._by_study[key.study]
