"""Sites share the model."""

from __future__ import annotations

from collections import Counter

import numpy as np

from cloud.scheduling.fairness import MAX_LEAD, SiteUsage, fair_order
from tests.cloud.scheduling.builders import entry


def test_sites_within_the_lead_are_served_by_deadline_alone() -> None:
    claims = [entry(60.0 + i, site="ab"[i % 2]) for i in (5, 2, 4, 1, 3)]
    order = [one.deadline.at_s for one in fair_order(claims, SiteUsage(), lambda _: 1.0)]
    assert order == [61.0, 62.0, 63.0, 64.0, 65.0]


def test_weights_set_the_shares() -> None:
    """Of eighty ROIs a site of weight 3 gets sixty beside one of weight 1, up to the lead."""
    claims = [entry(60.0, site=site) for site in ("heavy", "light") for _ in range(100)]
    weights = {"heavy": 3.0, "light": 1.0}
    turns = fair_order(claims, SiteUsage(), lambda site: weights[site])
    got = Counter(next(turns).site for _ in range(80))
    assert abs(got["heavy"] - 60) <= 3 * MAX_LEAD / 4


def test_the_most_urgent_within_the_lead_is_next() -> None:
    """Checked against the definition, for sites with many ROIs and different weights."""
    rng = np.random.default_rng(0)
    weights = {str(site): float(rng.choice([0.5, 1.0, 2.0])) for site in range(7)}
    claims = [entry(rng.uniform(60, 90), site=str(rng.integers(7))) for _ in range(300)]
    got, left = {"0": 5.0, "1": 20.0}, list(claims)
    for found in fair_order(claims, SiteUsage(dict(got)), weights.__getitem__):
        least = min(got.get(one.site, 0.0) for one in left)
        allowed = [one for one in left if got.get(one.site, 0.0) < least + MAX_LEAD]
        expected = min(allowed, key=lambda one: (one.deadline.at_s, one.number))
        assert found is expected
        left.remove(found)
        got[found.site] = got.get(found.site, 0.0) + 1.0 / weights[found.site]
    assert not left


def test_idle_time_earns_no_credit() -> None:
    """A site that begins to wait starts at the least usage of those that wait, not at zero."""
    service = SiteUsage({"busy": 100.0, "other": 90.0})
    service.join("late", {"busy", "other"})
    assert service.by_site["late"] == 90.0
    service.join("busy", {"other"})
    assert service.by_site["busy"] == 100.0
