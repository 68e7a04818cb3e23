"""The measured part of the budget's page."""

from __future__ import annotations

import json
from pathlib import Path

from evaluation.budget_page import BEGIN, END, write_figures
from evaluation.load_page import section

LOAD = {
    "command": "overread-eval load",
    "capacity_per_s": {"deadline": 10.0, "one at a time": 8.0},
    "throughput_of_one_at_a_time": {"deadline": 1.25, "one at a time": 1.0},
    "reader": "the cloud's own",
    "cpu": "a small machine",
    "cores": 2,
    "service_cores": 1,
    "apart": True,
    "latency_of_one_at_a_time": [{"load": 0.5, "p50": 0.8, "p95": None}],
    "edges": 8,
    "span_s": 5.0,
    "rounds": 2,
    "runs": [
        {"load": 2.0, "mode": "deadline", "goodput_of_capacity": 0.97,
         "goodput_of_capacity_by_round": [0.96, 0.98], "rejected": 40, "late": 0,
         "p50_ms": 210.4, "p99_ms": None, "wasted_share": 0.004}
    ],
}  # fmt: skip


def test_what_stands_around_the_marks_stays(tmp_path: Path) -> None:
    """Written twice, the page holds the figures once, between the same words."""
    page = tmp_path / "budget.md"
    page.write_text(f"# Budget\n\nwords\n\n{BEGIN}\nold\n{END}\n\nmore\n")
    (tmp_path / "load.json").write_text(json.dumps(LOAD))
    for _ in range(2):
        write_figures(tmp_path, page)
    text = page.read_text()
    assert text.startswith("# Budget\n\nwords\n")
    assert text.endswith(f"{END}\n\nmore\n")
    assert "old" not in text
    assert text.count("## The cloud under load") == 1


def test_load_is_told_in_shares_of_capacity() -> None:
    """Each run a row; what is unknown is a dash."""
    told = section({"load": LOAD})
    assert "deadline 10.0 (1.25 of one at a time)" in told
    assert "| 2 | deadline | 97% | 96%, 98% | 40 | 0 | 210 | - | 0.4% |" in told
    assert "The service on 1 of 2 cores of a small machine, the edges on the others." in told
    assert "the bars of 90% and 1% are reached." in told
    assert "| throughput | 4.7 times | 1.25 times |" in told
    assert "| latency at a load of 0.5 | -41 % | median -20 % |" in told
    shared = section({"load_shared": {**LOAD, "apart": False}})
    assert "All of it on 2 cores of a small machine." in shared
    asleep = section({"load_asleep": {**LOAD, "reader": "asleep 2,14 ms"}})
    assert "the reader sleeps 2,14 ms instead" in asleep
    assert section({}) == ""
