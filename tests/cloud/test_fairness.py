"""Sites share what is read."""

from __future__ import annotations

from collections import Counter

from cloud.fairness import LEAD, Service, fair
from tests.cloud.claims import claim


def test_sites_within_the_lead_are_served_by_deadline_alone() -> None:
    """Whose it is does not matter while nobody is far ahead."""
    claims = [claim(60.0 + i, site="ab"[i % 2]) for i in (5, 2, 4, 1, 3)]
    order = [one.deadline.at_s for one in fair(claims, Service(), lambda _: 1.0)]
    assert order == [61.0, 62.0, 63.0, 64.0, 65.0]


def test_weights_set_the_shares() -> None:
    """Of eighty ROIs a site of weight 3 gets sixty beside one of weight 1, up to the lead."""
    claims = [claim(60.0, site=site) for site in ("heavy", "light") for _ in range(100)]
    weights = {"heavy": 3.0, "light": 1.0}
    turns = fair(claims, Service(), lambda site: weights[site])
    got = Counter(next(turns).site for _ in range(80))
    assert abs(got["heavy"] - 60) <= 3 * LEAD / 4


def test_idleness_is_no_credit() -> None:
    """A site that begins to wait is where the least served one that waits is, not at zero."""
    service = Service({"busy": 100.0, "other": 90.0})
    service.join("late", {"busy", "other"})
    assert service.by_site["late"] == 90.0
    service.join("busy", {"other"})
    assert service.by_site["busy"] == 100.0
