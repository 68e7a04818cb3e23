"""Which rule takes a series."""

from pathlib import Path

import pytest

from edge.rules.rule import DEFAULT, Action, AppliedRule, Range, Received, Rule, Rules, fits
from imaging.selection import SeriesSummary
from imaging.volume import StudyHeader
from protos.messages import Priority

THIN = SeriesSummary(
    StudyHeader(series_description="Thorax 1.0 [HR]", manufacturer="SIEMENS"),
    Path("study"),
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    kernels=("Br64d", "3"),
    body_part="CHEST",
    slice_thickness_mm=1.0,
)
CAME = Received(calling_ae="CT_1", called_ae="SCREENING")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("modality", "ct"),
        ("description", "thorax*"),
        ("description", "*[HR]"),
        ("kernel", "B?64d"),
        ("kernel", "br64d\\*"),
        ("image_type", "axial"),
        ("image_type", "ORIGINAL\\PRIMARY\\*"),
        ("body_part", "chest"),
        ("manufacturer", "siem*"),
        ("calling_ae", "CT_*"),
        ("called_ae", "screening"),
    ],
)
def test_each_condition_looks_at_its_own_value_whatever_the_case(name: str, pattern: str) -> None:
    assert Rule("r", {name: (pattern,)}).takes(THIN, CAME)
    assert not Rule("r", {name: ("something else",)}).takes(THIN, CAME)


def test_one_of_several_patterns_is_enough_but_every_condition_must_hold() -> None:
    assert Rule("r", {"kernel": ("B70f", "Br*")}).takes(THIN, CAME)
    both = Rule("r", {"kernel": ("Br*",), "calling_ae": ("MR_1",)})
    assert not both.takes(THIN, CAME)


@pytest.mark.parametrize(
    ("values", "patterns", "expected"),
    [
        ([""], ["*"], False),
        ([""], [""], True),
        ([], ["?"], False),
        (["a"], [""], False),
        (["a"], ["", "a"], True),
    ],
)
def test_what_is_not_stated_fits_only_the_empty_pattern(
    values: list[str], patterns: list[str], expected: bool
) -> None:
    assert fits(values, patterns) is expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Range(most=1.0), True),
        (Range(least=1.0), True),
        (Range(0.5, 1.5), True),
        (Range(most=0.9), False),
        (Range(least=1.1), False),
    ],
)
def test_a_range_includes_its_ends(limits: Range, expected: bool) -> None:
    assert Rule("r", slice_thickness_mm=limits).takes(THIN, CAME) is expected


def test_a_thickness_that_is_not_stated_is_in_no_range() -> None:
    assert not Range().holds(None)


def test_the_first_rule_that_takes_a_series_decides_and_the_default_takes_the_rest() -> None:
    first, second = Rule("first", {"kernel": ("B*",)}), Rule("second", {"kernel": ("Br*",)})
    rules = Rules((Rule("no", {"modality": ("MR",)}), first, second))
    assert rules.match(THIN, CAME) == (1, first)
    assert Rules((Rule("no", {"modality": ("MR",)}),)).match(THIN, CAME) == (1, DEFAULT)
    assert Rules().match(THIN, CAME) == (0, DEFAULT)


def test_a_rule_without_a_priority_leaves_that_of_the_agent() -> None:
    assert AppliedRule.of(DEFAULT, Priority.STAT).priority is Priority.STAT
    own = Rule("r", action=Action.READ, priority=Priority.ROUTINE, screening=True)
    assert AppliedRule.of(own, Priority.STAT) == AppliedRule(
        "r", Action.READ, Priority.ROUTINE, True
    )
