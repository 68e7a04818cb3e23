"""Which rule takes a series; what a file of rules may say, and what is said of a bad one."""

from dataclasses import replace
from pathlib import Path

import pytest

from edge.rules.rule import (
    DEFAULT,
    Action,
    AppliedRule,
    BadRules,
    Range,
    Received,
    Rule,
    Rules,
    fits,
    load_rules,
)
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
        ("modality", "ct"), ("description", "thorax*"), ("description", "*[HR]"),
        ("kernel", "B?64d"), ("kernel", "br64d\\*"), ("image_type", "axial"),
        ("image_type", "ORIGINAL\\PRIMARY\\*"), ("body_part", "chest"), ("manufacturer", "siem*"),
        ("calling_ae", "CT_*"), ("called_ae", "screening"),
    ],
)  # fmt: skip
def test_each_condition_looks_at_its_own_value_whatever_the_case(name: str, pattern: str) -> None:
    assert Rule("r", {name: (pattern,)}).takes(THIN, CAME)
    assert not Rule("r", {name: ("something else",)}).takes(THIN, CAME)


def test_one_of_several_patterns_is_enough_but_every_condition_must_hold() -> None:
    assert Rule("r", {"kernel": ("B70f", "Br*")}).takes(THIN, CAME)
    both = Rule("r", {"kernel": ("Br*",), "calling_ae": ("MR_1",)})
    assert not both.takes(THIN, CAME)


@pytest.mark.parametrize(
    ("values", "patterns", "expected"),
    [([""], ["*"], False), ([""], [""], True), ([], ["?"], False), (["a"], [""], False),
     (["a"], ["", "a"], True)],
)  # fmt: skip
def test_what_is_not_stated_fits_only_the_empty_pattern(
    values: list[str], patterns: list[str], expected: bool
) -> None:
    assert fits(values, patterns) is expected


@pytest.mark.parametrize(
    ("limits", "thickness_mm", "expected"),
    [(Range(most=1.0), 1.0, True), (Range(least=1.0), 1.0, True), (Range(0.5, 1.5), 1.0, True),
     (Range(most=0.9), 1.0, False), (Range(least=1.1), 1.0, False), (Range(), None, False)],
)  # fmt: skip
def test_a_range_includes_its_ends_and_no_thickness_that_is_not_stated(
    limits: Range, thickness_mm: float | None, expected: bool
) -> None:
    series = replace(THIN, slice_thickness_mm=thickness_mm)
    assert Rule("r", slice_thickness_mm=limits).takes(series, CAME) is expected


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


GOOD = """
[[rules]]
name = "scouts"
description = ["*scout*", "*topo*"]
image_type = "LOCALIZER"
action = "ignore"

[[rules]]
name = "screening"
called_ae = "SCREENING"
slice_thickness_mm = { min = 0.5, max = 2 }
priority = "stat"
screening = true
"""


def test_a_file_gives_its_rules_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(GOOD)
    scouts = {"description": ("*scout*", "*topo*"), "image_type": ("LOCALIZER",)}
    screening = {"called_ae": ("SCREENING",)}
    assert load_rules(file) == Rules(
        (
            Rule("scouts", scouts, action=Action.IGNORE),
            Rule("screening", screening, Range(0.5, 2.0), priority=Priority.STAT, screening=True),
        )
    )


TOML, TABLES = "is not valid TOML", "expected one table [[rules]] for each rule"


def rule(fields: str, name: str = "a") -> str:
    return f"[[rules]]\nname = '{name}'\n{fields}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("= 3", TOML),
        ("a = " + "[" * 5000, TOML),
        ("rule = 1", "rule: expected only tables [[rules]]"),
        ("rules = 3", TABLES),
        ("", TABLES),
        ("[[rules]]\nkernel = 'a'", "rule 1, name = None: expected a name"),
        (rule("kernal = 'a'"), "('a'), kernal: there is no such field; did you mean kernel?"),
        (rule("kernel = 5"), "rule 1 ('a'), kernel = 5: expected text or a list of texts"),
        (rule("kernel = []"), "rule 1 ('a'), kernel = []"),
        (rule("priority = 'now'"), 'priority = \'now\': expected "routine" or "stat"'),
        (rule("action = 'drop'"), 'action = \'drop\': expected "read" or "ignore"'),
        (rule("screening = 1"), "screening = 1: expected true or false"),
        (rule("slice_thickness_mm = 1.0"), "_mm = 1.0: expected { min = MM, max = MM }"),
        (rule("slice_thickness_mm = { min = 3, max = 1 }"), "a min that is not above the max"),
        (rule("slice_thickness_mm = { max = nan }"), "expected { min = MM"),
        (rule(f"slice_thickness_mm = {{min = 1{400 * '0'}}}"), "rule 1 ('a'), slice_thickness_mm"),
        (rule("action = 'ignore'\nscreening = true"),
         "rule 1 ('a'), screening: has no effect on series that are ignored"),
        (rule("kernel = 'x'") + rule(""), "rule 2 ('a'), name: 'a' is the name of an earlier rule"),
        (rule("", "default"),
         "rule 1 ('default'), name: 'default' is the name of the last, implicit rule"),
        (rule("", "all") + rule("kernel = 'x'", "b"),
         "rule 2 ('b') never decides: 'all' before it has no condition"),
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_rule_and_field(
    text: str | bytes | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "rules.toml"
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(BadRules) as error:
        load_rules(file)
    assert str(error.value).startswith(str(file))
    assert said in str(error.value)
