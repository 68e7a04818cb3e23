"""The interval of what a policy finds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge.decide import Plan
from evaluation.policy_row import by_patient
from evaluation.policy_world import Told
from tests.evaluation.test_policy_routes import STUDY


def told(patient: str, found: set[str]) -> Told:
    """A study of four nodules."""
    study = replace(STUDY, patient=patient)
    return Told(study, Plan(()), 1.0, {}, found, 0, rois=0, sent_bytes=0)


def test_patients_are_drawn_not_nodules() -> None:
    """One patient read thrice is one, however it comes out."""
    alone = by_patient([told("a", {"a", "b"})] * 3)
    assert (alone.value, alone.low, alone.high) == (0.5, 0.5, 0.5)
    both = by_patient([told("a", {"a", "b", "c", "never proposed"}), told("b", set())])
    assert (both.value, both.low, both.high) == (0.5, 0.0, 1.0)


def test_more_patients_are_surer() -> None:
    """Twenty of which half are found: about .5 +- .22."""
    many = by_patient([told(str(i), set(STUDY.nodules) if i % 2 else set()) for i in range(20)])
    assert (many.low, many.high) == (pytest.approx(0.28, abs=0.04), pytest.approx(0.72, abs=0.04))
