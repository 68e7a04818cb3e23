import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evaluation.claims import claims
from evaluation.pages import command, read_results, render, templates
from models.runtime.artifacts import every
from tests.models.probe.test_matrix import RESULT

DOCS = Path(__file__).parents[2] / "docs"
TEMPLATES = templates(DOCS)
MODELS, BUDGET = DOCS / "models.md.j2", DOCS / "budget.md.j2"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("*.png")
    return Path(shutil.copytree(DOCS / "results", tmp_path / "results", ignore=ignored))


def change(results: Path, name: str, **values: Any) -> None:
    path = results / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def row(page: str, start: str) -> str:
    return next(line for line in page.splitlines() if line.startswith(f"| {start}"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_the_committed_page_is_what_is_rendered(template: Path) -> None:
    """`python -m evaluation.claims --page-only` writes it."""
    assert render(template, DOCS / "results") == template.with_suffix("").read_text()


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_every_table_begins_after_an_empty_line(template: Path) -> None:
    """Else Markdown takes it for a part of the paragraph before it."""
    lines = template.with_suffix("").read_text().splitlines()
    rules = [number for number, line in enumerate(lines) if "| --- |" in line]
    assert rules
    assert all(lines[number].startswith("|") and not lines[number - 2] for number in rules)


@pytest.mark.parametrize("template", [MODELS, BUDGET], ids=lambda path: path.name)
def test_without_results_there_are_no_figures(template: Path, tmp_path: Path) -> None:
    page = render(template, tmp_path)
    measured = render(template, DOCS / "results")
    assert ("not measured" in page) == (template == MODELS)
    assert "not measured" not in measured
    assert not any(line.startswith("    overread-eval ") for line in page.splitlines())
    assert page.count("\n## ") < measured.count("\n## ")


@pytest.mark.parametrize("name", sorted(read_results(DOCS / "results")))
def test_a_page_can_do_without_any_result(name: str, results: Path) -> None:
    path = results / f"{name}.json"
    typed = command(json.loads(path.read_text()))
    path.unlink()
    for template in (MODELS, BUDGET):
        assert typed not in render(template, results).split("\n\n")


def test_the_page_of_performance_has_the_tables_of_a_probe(tmp_path: Path) -> None:
    """Those that have a row."""
    result = {**RESULT, "command": "overread-models probe"}
    (tmp_path / "probe.json").write_text(json.dumps(result))
    page = render(DOCS / "performance.md.j2", tmp_path)
    assert "| screening-int8 | openvino |" in page
    assert "| network | what | against |" in page
    assert "| not here |" not in page


def test_every_result_is_measured_by_a_claim() -> None:
    """But one, whose commit the page names, and what `make evaluate` keeps of the demo."""
    assert set(read_results(DOCS / "results")) - set(claims("DATA")) == {"demo", "servers"}
    assert "measured once, at commit `69c68d1d`" in BUDGET.with_suffix("").read_text()


def test_every_artifact_has_its_version_licence_and_warning() -> None:
    page = render(MODELS, DOCS / "results")
    words = " ".join(page.split())
    for artifact in every().values():
        assert f"| `{artifact.name}` | {artifact.version} |" in page
        assert f"{artifact.licence}. {artifact.attribution}" in words
    assert "Not a medical device" in page


def test_what_is_not_reached_is_a_dash(results: Path) -> None:
    found = json.loads((results / "nodules_int8.json").read_text())
    found["curves"][1]["fp_at"][2] |= {"value": 7.5, "low": 3.0, "high": None}
    change(results, "nodules_int8", **found)
    lines = [line for line in render(MODELS, results).splitlines() if "7.5 (3.0--)" in line]
    assert lines[0].startswith("| INT8 | edge and cloud |")


def test_points_lost_are_the_difference_of_the_tables(results: Path) -> None:
    """FP32 less INT8, at each rate and of the CPM."""
    for name, values, cpm in (("fp32", (0.9, 0.95), 0.9), ("int8", (0.896, 0.955), 0.89)):
        found = json.loads((results / f"nodules_{name}.json").read_text())
        found["curves"][0] |= {
            "cpm": {"value": cpm, "low": 0, "high": 1},
            "sensitivity": [{"value": value, "low": 0, "high": 1} for value in values],
        }
        found["curves"][1]["sensitivity"] = found["curves"][1]["sensitivity"][:2]
        change(results, f"nodules_{name}", **found)
    (results / "nodules_int4.json").unlink()
    page = render(MODELS, results)
    assert "| INT8 | edge |" in page
    assert "Points of sensitivity lost" not in page  # they need INT4 too
    assert "most of the seven rates, edge | 0.8 | 0.4 |" in page


def test_met_or_not_follows_from_the_results(results: Path) -> None:
    found = read_results(results)
    change(results, "link", late=1)
    ways = [one | {"more_median_ms": 9.0, "more_p95_ms": 9} for one in found["dead_cloud"]["ways"]]
    change(results, "dead_cloud", ways=ways)
    missed = found["calibration"]["missed"]
    change(results, "calibration", missed=[one | {"miss_rate": 0.9} for one in missed])
    before, after = render(BUDGET, DOCS / "results"), render(BUDGET, results)
    for start, was, now in (
        ("answers later than", "yes", "no"),
        ("longest answer", "yes", "yes"),
        ("cloud refused: more than without a cloud, p95", "no", "yes"),
        ("nodules of test patients missed, findings", "yes", "no"),
    ):
        assert f"| {was} | `" in row(before, start), start
        assert f"| {now} | `" in row(after, start), start


def test_links_over_which_nothing_was_sent_are_named(results: Path) -> None:
    assert "Over `black-hole`, `dead`, `half-open` the health monitor" in render(BUDGET, results)
    traces = json.loads((results / "link.json").read_text())["traces"]
    change(results, "link", traces=[one for one in traces if one["escalated"]])
    assert "the health monitor found" not in render(BUDGET, results)


def test_a_long_command_continues_on_the_next_line() -> None:
    words = ["overread-eval", "nodules", *(f"--option-{n}" for n in range(12))]
    lines = command({"command": " ".join(words)}).split(" \\\n")
    assert len(lines) == 2
    assert " ".join(lines).split() == words
    assert lines[0].startswith("    overread-eval")
