import json
from pathlib import Path

import pytest

from evaluation.training.commands import curve
from models.runtime.errors import NoWeights


def test_a_learning_curve_says_what_the_last_rounds_gained(tmp_path: Path) -> None:
    rising = [0.1, 0.3, 0.5, 0.6, 0.65, 0.7, 0.74, 0.76]
    for name, values in {"a": rising, "b": [0.6], "c": [0.6, 0.7]}.items():
        (tmp_path / name).mkdir()
        lines = [
            json.dumps({"steps": 10 * i, "core_hours": 0.5 * i, "cpm": value})
            for i, value in enumerate(values, 1)
        ]
        (tmp_path / name / "log.jsonl").write_text("\n".join(lines))
    found = curve.measure([tmp_path / name for name in "abc"])
    table = curve.table("rounds").of(found)
    assert table.title == "cpm on validation"
    shown = table.markdown().splitlines()
    assert "| a | 20 | 1.00 | 0.300 | - | - |" in shown
    assert "| a | 80 | 4.00 | 0.760 | 0.075 | 0.010 |" in shown
    assert "| b | 10 | 0.50 | 0.600 | - | - |" in shown
    assert "| c | 20 | 1.00 | 0.700 | 0.100 | - |" in shown
    with pytest.raises(NoWeights, match="no round with recall"):
        curve.measure([tmp_path / "a"], "recall")
