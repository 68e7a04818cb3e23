"""One panel of a Pareto plot."""

from __future__ import annotations

import itertools

from evaluation.policy_panel import MARKERS, PANEL, panel
from evaluation.policy_plot import FOUND, P95, ROIS, panels_of
from tests.evaluation.test_policy_ratio import row

AT = {"p95_ms": 1000.0}


def at(policy: str, rois: float, found: float = 0.9) -> dict[str, object]:
    """A row of which only its place matters."""
    return {"kind": policy, **row(policy, found, 1.0, rois, 0.0), **AT}


def test_ticks_are_round_and_apart() -> None:
    """Whatever the scale, at least two, the least distance between them kept."""
    for axis, span, words in (
        (ROIS, (0.0, 6.7), ["0", "0.7", "3", "7", "15", "30"]),
        (P95, (0.3, 0.6), ["2", "3"]),
    ):
        ticks = axis.ticks(span)
        assert [words for _, words in ticks][: len(words)] == words
        places = [place for place, _ in ticks]
        least = min(b - a for a, b in itertools.pairwise(places))
        assert least >= 0.1 * (span[1] - span[0])
    assert [words for _, words in FOUND.ticks((90.0, 100.0))][::4] == ["90", "100"]


def test_no_marker_hides_another() -> None:
    """All kinds at one place: something of each colour is to be seen."""
    rows = [at(kind, 1.0) for kind in MARKERS] + [at("edge only", 9.0, 0.8)]
    picture = panel("made", rows, ROIS, FOUND)
    assert picture.shape == (*PANEL, 3)
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert [kind for kind, marker in MARKERS.items() if marker.colour not in colours] == []


def test_links_alike_share_a_panel_and_where_nothing_differs_there_is_none() -> None:
    """Named by all of them."""
    rows = [at("ours", 1.0), at("oracle", 9.0, 0.95)]
    near = [at("ours", 1.01), at("oracle", 9.0, 0.95)]
    far = [at("ours", 4.0), at("oracle", 9.0, 0.95)]
    dead = [at("ours", 0.0), at("oracle", 0.0, 0.95)]
    traces = {"fibre": rows, "dsl": far, "lte": near, "dead": dead}
    drawn = panels_of(
        [{"trace": name, "policies": found} for name, found in traces.items()], ROIS, FOUND
    )
    assert [title for title, _ in drawn] == ["fibre, lte", "dsl"]
