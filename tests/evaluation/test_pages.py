import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cloud.settings import CloudSettings
from edge.settings.core import EdgeSettings
from evaluation.claims import claims
from evaluation.links.trace import find_trace
from evaluation.pages import command, read_results, render
from evaluation.policies.compare import compare
from evaluation.policies.simulate import World
from models.runtime.artifacts import every
from tests.evaluation.made_cases import made_cases

DOCS = Path(__file__).parents[2] / "docs"
TEMPLATES = sorted(DOCS.glob("*.md.j2"))
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
    assert "not measured" in page
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


def test_every_result_of_the_budget_is_measured_by_a_claim() -> None:
    text = BUDGET.read_text()
    found = read_results(DOCS / "results")
    used = {name for name in found if f"{name} is defined" in text or f'\n  "{name}": ' in text}
    assert {"link", "load_shared", "clock_jumps"} <= used <= {one.name for one in claims("DATA")}


def test_every_artifact_has_its_version_licence_and_warning() -> None:
    page = render(MODELS, DOCS / "results")
    words = " ".join(page.split())
    for artifact in every().values():
        assert f"| `{artifact.name}` | {artifact.version} |" in page
        assert f"{artifact.licence}. {artifact.attribution}" in words
    assert "Not a medical device" in page


def test_what_is_not_reached_is_a_dash_or_words(results: Path) -> None:
    found = json.loads((results / "nodules_both_int8.json").read_text())
    scans = [found["scans"][0] | {"scan": "chest_8", "lesion_score": None}]
    change(results, "nodules_both_int8", scans=scans, fp_at={
        "97.2": {"value": 7.5, "low": 3.0, "high": None},
    })  # fmt: skip
    for name in ("edge_fp32", "edge_int8", "edge_int4", "both_fp32"):
        (results / f"nodules_{name}.json").unlink()
    page = render(MODELS, results)
    assert "| edge and cloud, INT8 | 7.5 (3.0--) |" in page
    assert row(page, "chest_8").endswith("| not proposed |")


def test_points_lost_are_the_difference_of_the_tables(results: Path) -> None:
    """FP32 less INT8, at each rate and of the CPM."""
    (results / "nodules_edge_int4.json").unlink()
    for name, values, cpm in (("fp32", (0.9, 0.95), 0.9), ("int8", (0.896, 0.955), 0.89)):
        points = [
            {"false_positives_per_scan": rate, "value": value, "low": 0, "high": 1}
            for rate, value in enumerate(values)
        ]
        change(results, f"nodules_edge_{name}", sensitivity=points,
               cpm={"value": cpm, "low": 0, "high": 1})  # fmt: skip
    assert "| edge, INT8 | +0.4 | -0.5 | +0.010 |" in render(MODELS, results)


def test_met_or_not_follows_from_the_results(results: Path) -> None:
    found = read_results(results)
    ways = [
        one | {"more_median_ms": 9.0, "more_p95_ms": 9.0} for one in found["dead_cloud"]["ways"]
    ]
    change(results, "dead_cloud", ways=ways)
    sound = render(BUDGET, results)
    found = read_results(results)
    change(results, "link", late=1)
    ways = [one | {"more_p95_ms": 51.0} for one in found["dead_cloud"]["ways"]]
    change(results, "dead_cloud", ways=ways)
    change(results, "detection", links=[found["detection"]["links"][0] | {"p95_ms": 86.0}])
    runs = [run | {"wasted_share": 0.02} for run in found["load"]["runs"]]
    change(results, "load", runs=runs)
    change(results, "kills", lost=["x"])
    given = found["calibration"]["guarantee"]
    within = given["test"]["findings"]["within"]
    given["test"]["findings"]["within"] = not within
    change(results, "calibration", guarantee=given)
    page = render(BUDGET, results)
    for start, before, after in (
        ("answers later than", "yes", "no"),
        ("longest answer", "yes", "yes"),
        ("cloud refused: more than without a cloud, median", "yes", "yes"),
        ("cloud refused: more than without a cloud, p95", "yes", "no"),
        (
            "nodules of test patients missed, findings",
            *(("yes", "no") if within else ("no", "yes")),
        ),
        ("from candidate to verdict, loopback", "yes", "no"),
        ("load 2, service on its own core: answered in time", "yes", "yes"),
        ("load 2, service on its own core: work wasted", "yes", "no"),
        ("agent killed", "yes", "no"),
        ("link lost", "yes", "yes"),
    ):
        assert f"| {before} | `" in row(sound, start), start
        assert f"| {after} | `" in row(page, start), start


def test_escalation_is_assessed_for_each_kind_of_threshold(results: Path) -> None:
    """One that sends nothing and finds as much cannot be beaten; one that finds less can."""
    ratio = json.loads((results / "policies.json").read_text())["escalation_ratio"]
    start = "ROIs and bytes sent, verdicts only, against "
    against = ratio["verdicts"][ratio["trace"]]
    against["single"] |= {"rois": 0.29, "bytes": 0.29, "met": True, "escalates": True}
    against["pair"] |= {"rois": 62.5, "bytes": 62.5, "met": False, "escalates": True}
    against["cut"] |= {"escalates": False, "as_good": True}
    change(results, "policies", escalation_ratio=ratio)
    page = render(BUDGET, results)
    assert "| 0.29 and 0.29 times | yes |" in row(page, start + "(a)")
    assert "| 62.50 and 62.50 times | no |" in row(page, start + "(b)")
    assert "| it sends nothing | no |" in row(page, start + "(c)")
    against["cut"]["as_good"] = False
    change(results, "policies", escalation_ratio=ratio)
    assert "| it sends nothing | yes |" in row(render(BUDGET, results), start + "(c)")


def test_policies_on_whole_scans_state_what_the_second_reader_is_worth(results: Path) -> None:
    world = World(made_cases(), EdgeSettings(), CloudSettings(), every_s=20.0, seed=0)
    found = compare(world, [find_trace("fibre")], rounds=1)
    found["sets"]["test"]["real"] |= {"uncertain_per_scan": 2.9, "changed": 4, "right": 3}
    found["escalation_ratio"]["verdicts"]["fibre"]["cloud"] |= {"bytes": 0.36, "met": False}
    change(results, "policies", **found)
    page = render(BUDGET, results)
    bytes_sent = row(page, "found and bytes sent, verdicts only, against cloud only")
    assert "| as much, at most 0.35 times | as much or more, 0.36 times | no |" in bytes_sent
    assert "| 2.9 | no |" in row(page, "uncertain candidates a scan, real test scans")
    assert "| 3 of 4 | yes |" in row(page, "decisions changed by verdicts that are right")
    assert "| more | " in row(page, "found, verdicts only, against edge only at equal false")
    words = " ".join(page.split())
    assert "2 nodules in `test scan 0`, `test scan 1`" in words
    assert "12 copies of these, with 24 nodules of 12 other test patients inserted" in words
    assert row(page, "test, real").startswith("| test, real | 2.9 | 4 | 3 |")


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
