from __future__ import annotations

import pytest

from edge.persistence import Persistence
from edge.settings import load_settings


@pytest.mark.parametrize(
    ("deadline_s", "budgets_s"),
    [(10.0, [2.0, 4.0, 5.0, 5.0]), (60.0, [2.0, 4.0, 8.0, 16.0]), (5.0, [1.0, 2.0, 2.5, 2.5])],
)
def test_an_asking_is_short_and_longer_only_after_those_in_vain(
    deadline_s: float, budgets_s: list[float]
) -> None:
    """It doubles, and what arrives meanwhile keeps half of its deadline at least."""
    persistence = Persistence.of(load_settings(deadline_s=deadline_s))
    assert [persistence.budget_s(in_vain) for in_vain in range(4)] == budgets_s
    assert persistence.budget_s(10**6) == deadline_s / 2
