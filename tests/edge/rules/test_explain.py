"""``rules test``: the studies of a folder, their rules, and the series that would be read."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge.cli.main import app
from edge.rules.explain import explain, studies_below
from edge.settings.core import load_settings
from tests.imaging.small_ct import SmallCt

RULES = """
[[rules]]
name = "night"
calling_ae = "ER"
priority = "stat"

[[rules]]
name = "slabs"
description = "slab*"
action = "ignore"
"""


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two series in sub-folders, and one of a slab alone."""
    root = tmp_path_factory.mktemp("inbox")
    chest = SmallCt(12, 10.0, series="5")
    chest.write(root / "first" / "a")
    SmallCt(12, 2.0, series="6", description="slab").write(root / "first" / "b")
    own = {"StudyInstanceUID": "1.2.826.2"}
    SmallCt(12, 2.0, series="7", description="slab", attributes=own).write(root / "second")
    (root / "rules.toml").write_text(RULES)
    return root


def test_a_folder_is_one_study_unless_its_folders_hold_several(studies: Path) -> None:
    assert studies_below(studies) == [studies / "first", studies / "second"]
    assert studies_below(studies / "first") == [studies / "first"]
    assert studies_below(studies / "first" / "a" / "000.dcm") == [
        studies / "first" / "a" / "000.dcm"
    ]


def test_each_series_has_its_rule_and_one_is_marked_as_the_agent_would_read_it(
    studies: Path,
) -> None:
    settings = load_settings(rules=studies / "rules.toml")
    first, second = explain(studies, settings)
    assert (first.outcome, second.outcome) == ("read", "ignored")
    assert [(one.rule.name, one is first.chosen) for one in first.series] == [
        ("default", True),
        ("slabs", False),
    ]
    assert (second.chosen, second.reason) == (None, "ignored by the rule 'slabs'")
    (ignored,) = second.series
    assert ignored.rule.name == "slabs"
    (read,) = explain(studies / "second", settings, calling_ae="er")
    assert read.chosen is not None
    assert read.applied(read.chosen).priority.value == "stat"


def test_the_command_tries_a_file_of_rules(studies: Path) -> None:
    arguments = ["rules", "test", str(studies / "second"), "--rules", str(studies / "rules.toml")]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0
    (study,) = json.loads(result.stdout)["studies"]
    assert study["outcome"] == "ignored"
    assert study["series"][0] | {"slice_thickness_mm": 2.0} == study["series"][0]
    assert (study["series"][0]["rule"], study["series"][0]["read"]) == ("slabs", False)
    shown = CliRunner().invoke(app, [*arguments, "--calling-ae", "ER"]).stdout
    assert "the marked series would be read" in shown
    assert "read, stat" in shown


def test_a_study_that_would_be_refused_says_why(tmp_path: Path) -> None:
    SmallCt(3).write(tmp_path / "short")
    (study,) = explain(tmp_path / "short", load_settings())
    assert study.outcome == "refused"
    assert study.reason.startswith("IncompleteSeries: ")
