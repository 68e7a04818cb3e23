"""Which rule takes a series; what a file of rules may say, and what is said of a bad one."""

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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("= 3", "is not valid TOML"),
        (
            f"[[rules]]\nname = 'a'\nslice_thickness_mm = {{min = 1{400 * '0'}}}",
            "rule 1 ('a'), slice_thickness_mm = ",
        ),
        ("a = " + "[" * 5000, "is not valid TOML"),
        ("rule = 1", "rule: expected only tables [[rules]]"),
        ("rules = 3", "expected one table [[rules]] for each rule"),
        ("", "expected one table [[rules]] for each rule"),
        ("[[rules]]\nkernel = 'a'", "rule 1, name = None: expected a name"),
        (
            "[[rules]]\nname = 'a'\nkernal = 'a'",
            "rule 1 ('a'), kernal: there is no such field; did you mean kernel?",
        ),
        (
            "[[rules]]\nname = 'a'\nkernel = 5",
            "rule 1 ('a'), kernel = 5: expected text or a list of texts",
        ),
        ("[[rules]]\nname = 'a'\nkernel = []", "rule 1 ('a'), kernel = []"),
        (
            "[[rules]]\nname = 'a'\npriority = 'now'",
            "rule 1 ('a'), priority = 'now': expected \"routine\" or \"stat\"",
        ),
        (
            "[[rules]]\nname = 'a'\naction = 'drop'",
            "rule 1 ('a'), action = 'drop': expected \"read\" or \"ignore\"",
        ),
        ("[[rules]]\nname = 'a'\nscreening = 1", "screening = 1: expected true or false"),
        (
            "[[rules]]\nname = 'a'\nslice_thickness_mm = 1.0",
            "slice_thickness_mm = 1.0: expected { min = MM, max = MM }",
        ),
        (
            "[[rules]]\nname = 'a'\nslice_thickness_mm = { min = 3, max = 1 }",
            "expected a min that is not above the max",
        ),
        ("[[rules]]\nname = 'a'\nslice_thickness_mm = { max = nan }", "expected { min = MM"),
        (
            "[[rules]]\nname = 'a'\naction = 'ignore'\nscreening = true",
            "rule 1 ('a'), screening: has no effect on series that are ignored",
        ),
        (
            "[[rules]]\nname = 'a'\nkernel = 'x'\n[[rules]]\nname = 'a'",
            "rule 2 ('a'), name: 'a' is the name of an earlier rule",
        ),
        (
            "[[rules]]\nname = 'default'",
            "rule 1 ('default'), name: 'default' is the name of the last, implicit rule",
        ),
        (
            "[[rules]]\nname = 'all'\n[[rules]]\nname = 'b'\nkernel = 'x'",
            "rule 2 ('b') never decides: 'all' before it has no condition",
        ),
    ],
)
def test_a_bad_file_is_refused_with_rule_and_field(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(BadRules) as error:
        load_rules(file)
    assert str(error.value).startswith(str(file))
    assert said in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRules, match=r"missing.toml cannot be read: No such file"):
        load_rules(tmp_path / "missing.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(BadRules, match="is not UTF-8 text"):
        load_rules(binary)
