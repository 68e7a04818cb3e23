from collections import Counter

import numpy as np
import pytest

from evaluation.load.generator import Traffic, poisson
from protos.messages import Priority


def test_the_rate_is_met_and_gaps_are_exponential() -> None:
    """2,000 s at 50 ROIs a second, 2.5 a study: 20 studies a second, gaps as spread as long."""
    arrivals = poisson(Traffic(), 50.0, 2000.0, seed=3)
    gaps_s = np.diff([0.0] + [one.at_s for one in arrivals])
    assert sum(one.rois for one in arrivals) / 2000.0 == pytest.approx(50.0, rel=0.03)
    assert gaps_s.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.03)


def test_studies_follow_the_traffic() -> None:
    arrivals = poisson(Traffic(edges=4), 50.0, 1000.0, seed=3)
    count = len(arrivals)
    for values, options in (
        ([one.rois for one in arrivals], 4),
        ([one.budget_s for one in arrivals], 3),
        ([one.edge for one in arrivals], 4),
    ):
        shares = [n / count for n in Counter(values).values()]
        assert shares == pytest.approx([1 / options] * options, abs=0.02)
    stat = sum(one.priority is Priority.STAT for one in arrivals)
    assert stat / count == pytest.approx(0.1, abs=0.01)


def test_a_seed_gives_the_same_arrivals_again() -> None:
    again = [poisson(Traffic(), 20.0, 10.0, seed=seed) for seed in (1, 1, 2)]
    assert again[0] == again[1]
    assert again[0] != again[2]
