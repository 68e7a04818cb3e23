from cloud.cache import MAX_PER_STUDY, CacheKey, VerdictCache
from protos.messages import Verdict

VERDICT = Verdict(1, 0.5, 6.0, "m 1", 0.25, 0.125)


def test_the_oldest_is_evicted_when_the_cache_is_full() -> None:
    cache = VerdictCache(2, 60.0)
    for roi_id in (1, 2, 1, 3):
        cache.put(CacheKey(("s", "k"), roi_id, b""), VERDICT)
    cached = [i for i in (1, 2, 3) if cache.get(CacheKey(("s", "k"), i, b"")) is not None]
    assert cached == [1, 3]
    none = VerdictCache(0, 60.0)
    none.put(CacheKey(("s", "k"), 1, b""), VERDICT)
    assert none.get(CacheKey(("s", "k"), 1, b"")) is None


def test_one_study_neither_fills_the_cache_nor_makes_counting_slow() -> None:
    cache = VerdictCache(2 * MAX_PER_STUDY, 60.0)
    cache.put(CacheKey(("s", "other"), 1, b""), VERDICT)
    for roi_id in range(4 * MAX_PER_STUDY):
        cache.put(CacheKey(("s", "k"), roi_id, b""), VERDICT)
    assert cache.count(("s", "k")) == MAX_PER_STUDY
    assert cache.count(("s", "other")) == 1
    assert cache.get(CacheKey(("s", "k"), roi_id, b"")) is not None


def test_the_verdicts_of_a_study_are_counted() -> None:
    """Evicted and expired ones do not count: at 60 s one cached for 60 s is expired."""
    now_s = 0.0
    cache = VerdictCache(2, 60.0, lambda: now_s)
    assert cache.count(("s", "k")) == 0
    for key, roi_id in (("k", 1), ("k", 2), ("j", 1)):
        cache.put(CacheKey(("s", key), roi_id, b""), VERDICT)
    assert (cache.count(("s", "k")), cache.count(("s", "j"))) == (1, 1)
    cache.put(CacheKey(("s", "j"), 2, b""), VERDICT)
    assert (cache.count(("s", "k")), cache.count(("s", "j"))) == (0, 2)
    assert list(cache._by_study) == [("s", "j")]  # or memory would grow with every study
    now_s = 59.0
    assert cache.get(CacheKey(("s", "j"), 2, b"")) is not None
    now_s = 60.0
    assert cache.get(CacheKey(("s", "j"), 2, b"")) is None
    assert cache.count(("s", "j")) == 0
