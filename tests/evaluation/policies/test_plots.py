from pathlib import Path

import cv2
import numpy as np

from evaluation.policies.plots import FOUND, MARKERS, ROIS, draw, draw_panel, panels_of
from models.charts import new_figure, save_png
from tests.evaluation.policies.test_compare import row


def at(policy: str, rois: float, found: float = 0.9) -> dict[str, object]:
    return {"kind": policy, **row(policy, found, 1.0, rois, 0.0), "p95_ms": 1000.0}


def test_no_marker_hides_another(tmp_path: Path) -> None:
    rows = [at(kind, 1.0) for kind in MARKERS] + [at("edge only", 9.0, 0.8)]
    figure = new_figure(4.2, 3.4)
    draw_panel(figure.subplots(), rows, ROIS, FOUND)
    save_png(figure, tmp_path / "panel.png")
    picture = cv2.imread(str(tmp_path / "panel.png"))
    assert picture is not None
    pixels = picture[..., ::-1].astype(int)
    for kind, (colour, *_) in MARKERS.items():
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(pixels - rgb).max(-1).min() < 10, kind  # edges are blended


def test_where_nothing_differs_the_chart_is_empty() -> None:
    dead = [at("ours", 0.0), at("oracle", 0.0)]
    figure = draw({"traces": [{"trace": "dead", "policies": dead}]}, "rois")
    assert not any(axes.axison for axes in figure.axes)


def test_links_that_are_alike_share_a_panel() -> None:
    rows = [at("ours", 1.0), at("oracle", 9.0, 0.95)]
    dead = [at("ours", 0.0), at("oracle", 0.0, 0.95)]
    traces = {"fibre": rows, "dsl": [at("ours", 4.0), rows[1]],
              "lte": [at("ours", 1.01), rows[1]], "dead": dead}  # fmt: skip
    given = [{"trace": name, "policies": found} for name, found in traces.items()]
    drawn = panels_of(given, ROIS, FOUND)
    assert [title for title, _ in drawn] == ["fibre, lte", "dsl"]
