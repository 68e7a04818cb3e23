"""The table at the top of the budget's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation.budget_summary import ASKED, BEGIN, END, section, write_section

SOUND: dict[str, Any] = {"lost": [], "doubled": [], "left": []}
FOUND: dict[str, Any] = {
    "link": {"command": "overread-eval link --lanes 2", "late": 0, "studies": 20, "deadline_s": 2.0,
             "traces": [{"longest_ms": 900.0}, {"longest_ms": 1900.0}]},
    "dead_cloud": {"command": "overread-eval dead-cloud", "ways": [
        {"way": "off", "more_median_ms": 0.0, "more_p95_ms": 0.0},
        {"way": "refused", "more_median_ms": 4.0, "more_p95_ms": 51.0}]},
    "guarantee": {"command": "overread-eval guarantee",
                  "carried": {"splits": {"kept": 0.997, "resamples": 1000}}, "served": {
        "guarantee": {"alpha": 0.104, "delta": 0.1, "patients": 62, "holds": False},
        "test": {"miss_rate": 0.03, "patients": 56, "kept": True}}},
    "detection": {"command": "overread-eval detection",
                  "links": [{"link": "fibre", "p95_ms": 63.0}]},
    "kills": {"command": "python -m evaluation.kills --rounds 2", "kills": 4, **SOUND},
    "full_disk": {"command": "unshare -rm sh -c 'python -m evaluation.full_disk --at /mnt'",
                  "fillings": 5, **SOUND},
}  # fmt: skip


def row(found: dict[str, Any], what: str) -> str:
    """The line of the table that begins so."""
    return next(line for line in section(found).splitlines() if line.startswith(f"| {what} |"))


def test_what_was_not_measured_says_so() -> None:
    """Each thing that was asked has its row all the same."""
    assert section({}).count("| not measured | - | - |") == len(ASKED)
    assert row(FOUND, "batching").endswith("| not measured | - | - |")


def test_met_or_not_follows_from_the_results() -> None:
    """By the late, by the worse of median and p95, by what can be promised, by the slowest link."""
    assert "| 0 of 20 over 2 links" in row(FOUND, "deadline")
    assert row(FOUND, "deadline").endswith("the longest 1900 ms | yes | `overread-eval link` |")
    assert "| refused 4 ms, p95 51 ms | no |" in row(FOUND, "dead cloud")
    told = row(FOUND, "guarantee")
    assert (
        "| of 62 patients 10.4 % can be promised; a level that they carry holds in 99.7 %" in told
    )
    assert "; 3.0 % missed of 56 test patients | no; what is promised holds: yes |" in told
    assert "| fibre 63 ms | yes |" in row(FOUND, "one detection")
    late = {**FOUND, "link": {**FOUND["link"], "late": 1}}
    assert "| no |" in row(late, "deadline")


def test_recovery_is_met_only_when_all_of_it_was_measured() -> None:
    """What lacks is named; one study that is lost is one too many."""
    told = row(FOUND, "recovery")
    assert "the agent killed 4 times: 0; the link lost: not measured" in told
    assert "| as far as measured |" in told
    assert told.endswith("| `python -m evaluation.full_disk`, `python -m evaluation.kills` |")
    rest = {"flaps": {"command": "c", "flaps": 1, **SOUND},
            "clock_jumps": {"command": "c", "jumps": 7, **SOUND}}  # fmt: skip
    assert "the wall clock set 7 times: 0 | yes |" in row({**FOUND, **rest}, "recovery")
    rest["flaps"] = {**rest["flaps"], "lost": ["x"]}
    assert "the link lost 1 times: 1;" in row({**FOUND, **rest}, "recovery")
    assert "| no |" in row({**FOUND, **rest}, "recovery")


def test_escalation_names_each_opponent_and_is_read_in_both_shapes() -> None:
    """A cut that asks nothing and finds as much is not met; one that finds less is no opponent."""
    half = {"rois": 0.2, "bytes": 0.3, "met": True, "asks": True, "as_good": True}
    cut = {"rois": None, "bytes": None, "met": False, "asks": False, "as_good": False}
    ratio = {"trace": "fibre", "verdicts": {"fibre": {"single": half, "pair": None, "cut": cut}},
             "described": {"fibre": {"pair": half, "cut": {**cut, "as_good": True}}}}  # fmt: skip
    told = row({"policies": {"command": "c", "escalation_ratio": ratio}}, "escalation")
    assert "verdicts alone: a single one 0.20, 0.30, a cut of the edge's own asks nothing, " in told
    assert "finds less; with descriptions: a pair 0.20, 0.30" in told
    assert "| verdicts alone: a single one yes, a cut of the edge's own yes; with desc" in told
    assert "with descriptions: a pair yes, a cut of the edge's own no |" in told
    before = {"trace": "fibre", "verdicts": {"rois": 0.26, "bytes": 0.26, "met": True}}
    told = row({"policies": {"command": "c", "escalation_ratio": before}}, "escalation")
    assert "| verdicts alone: fixed 0.26, 0.26 | verdicts alone: fixed yes |" in told
    assert "not measured" in row({"policies": {"command": "c"}}, "escalation")


def test_load_is_read_leniently() -> None:
    """Overload is that at twice the capacity; a shape that is not known is not measured."""
    run = {"load": 2.0, "mode": "deadline", "goodput_of_capacity": 0.97, "wasted_share": 0.01}
    load = {"command": "overread-eval load", "runs": [{**run, "load": 1.0}, run],
            "throughput_of_one_at_a_time": {"deadline": 1.5, "one at a time": 1.0}}  # fmt: skip
    asleep = {**load, "runs": [{**run, "goodput_of_capacity": 0.5}]}
    told = row({"load": load, "load_asleep": asleep}, "overload")
    assert "on cores of its own 97%, 1.0% for nothing; with a reader that sleeps 50%" in told
    assert "| on cores of its own: yes; with a reader that sleeps: no |" in told
    assert "| 1.50x | no |" in row({"load": load}, "batching")
    other = {"command": "overread-eval load", "runs": [{"load": 2.0}]}
    assert "| not measured |" in row({"load": other}, "overload")
    assert "| not measured |" in row({"load": other}, "batching")


def test_the_best_number_of_stages_counts() -> None:
    """One stage is not held against itself."""
    given = (("whole", 1, 1.0), ("2 parts", 2, 1.2), ("3 parts", 3, 3.3))
    stages = [{"name": n, "stages": k, "throughput_ratio": ratio} for n, k, ratio in given]
    told = row({"stages": {"command": "c", "contestants": stages}}, "stages")
    assert "| 2 parts 1.20x; 3 parts 3.30x | yes |" in told


def test_the_table_stands_between_its_marks(tmp_path: Path) -> None:
    """Written twice it is there once; a page without marks is left."""
    page = tmp_path / "budget.md"
    page.write_text(f"# Budget\n\n{BEGIN}\nformer words\n{END}\n\n## More\n")
    for _ in range(2):
        write_section(page, FOUND)
    text = page.read_text()
    assert text.startswith(f"# Budget\n\n{BEGIN}\n## What was asked, what was measured\n")
    assert text.endswith(f"|\n{END}\n\n## More\n")
    assert "former words" not in text
    page.write_text("plain")
    write_section(page, FOUND)
    assert page.read_text() == "plain"
