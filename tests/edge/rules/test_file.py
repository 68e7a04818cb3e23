"""Files of rules: what they may say, and what is said of a bad one."""

from pathlib import Path

import pytest

from edge.rules.file import BadRules, load_rules
from edge.rules.rule import Action, Range, Rule, Rules
from protos.messages import Priority

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


def test_without_a_file_there_are_no_rules() -> None:
    assert not load_rules(None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("= 3", "is not valid TOML"),
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
