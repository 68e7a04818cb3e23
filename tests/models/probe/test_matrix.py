import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from models import __main__ as command
from models.probe import matrix, table
from models.probe.matrix import run_probe, ways
from models.runtime import hardware
from models.runtime.artifacts import every, find
from models.runtime.choice import Way, choose, recall
from models.runtime.errors import UnfitArtifact
from tests.models.runtime.conftest import weights as weights


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """One pass of each way, on a machine of one core; what is found is kept apart."""
    monkeypatch.setattr(matrix, "ROUNDS", 1)
    monkeypatch.setattr(hardware, "cores", lambda: 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".cache/overread/engines.json"


def test_every_way_is_measured_in_a_process_and_the_best_is_kept(
    short: Path, weights: Path
) -> None:
    shown: list[int] = []

    def track(plan: Sequence[Any]) -> Iterable[Any]:
        shown.append(len(plan))
        return iter(plan)

    result = run_probe(["bright-screening"], weights, track)
    rows = {(row["engine"], row["fused"]): row for row in result["rows"]}
    assert shown == [len(result["rows"])]
    assert {*rows} == {("onnxruntime", False), *((e, True) for e in (*hardware.engines(), "torch"))}
    assert "no weights of a screening network" in rows.pop(("torch", True))["error"]
    for row in rows.values():
        assert (row["error"], row["same"]) == ("", row["of"])
        assert row["difference"] < 1e-3
        assert min(row["p50_ms"], row["ratio"], row["peak_mb"]) > 0
    artifact = find("bright-screening", weights)
    assert {way.engine for way in recall(artifact)[0]} == set(hardware.engines())
    assert all(way.probed and way.ratio for way in recall(artifact)[0])
    (chosen,) = (row for row in result["rows"] if row["chosen"])
    assert choose(artifact).engine == chosen["engine"]
    (entry,) = json.loads(short.read_text()).values()
    assert (entry["machine"], entry["date"][:10]) == (result["machine"], result["date"])


@pytest.mark.usefixtures("short")
def test_a_way_that_crashes_is_a_row(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -ILL $$\n")
    crashing.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(crashing))
    result = run_probe(["bright-screening"], weights)
    assert {row["error"] for row in result["rows"]} == {"crashed: SIGILL"}
    assert all(
        way.error == "crashed: SIGILL" for way in recall(find("bright-screening", weights))[0]
    )
    (ways, *_) = table.shown(result)
    assert "crashed: SIGILL" in ways.markdown()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "bf16", "expected"),
    [
        ("screening-int8", True, {Way("openvino", n) for n in (1, 2, 4, 6)}),
        ("hybrid-int8", False, {
            *(Way("openvino", n) for n in (1, 2, 4, 6)),
            *(Way("openvino", 6, stages=n) for n in (2, 3)),
        }),
        ("hybrid-int8", True, {
            *(Way("openvino", n, half=half) for n in (1, 2, 4, 6) for half in (False, True)),
            *(Way("openvino", 6, stages=n) for n in (2, 3)),
        }),
    ],
)  # fmt: skip
def test_the_ways_of_an_artifact(
    name: str, bf16: bool, expected: set[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 bits are tried where the model allows them, accelerators with all cores."""
    monkeypatch.setattr(hardware, "has_bf16", lambda: bf16)
    first, *rest = ways(find(name), ("openvino:GPU", "openvino"), 6)
    assert first == Way("onnxruntime", 6, fused=False)
    assert set(rest) == {Way("openvino:GPU", 6), *expected}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([(True, 1, 1, 1)], [(True, 1, 1, 8)], (1, 1)),
        ([(True, 1, 1, 1)], [(False, 1, 1, 1)], (0, 1)),
        ([(True, 1, 1, 1)], [(True, 1, 1, 20)], (0, 1)),
        ([(True, 1, 1, 1), (True, 2, 2, 2)], [(True, 1, 1, 1)], (1, 2)),
        ([], [(True, 1, 1, 1)], (0, 1)),
        ([], [], (0, 0)),
    ],
)
def test_decisions_are_the_same_at_the_same_place(
    ours: list[Any], theirs: list[Any], expected: tuple[int, int]
) -> None:
    assert matrix._agreement(ours, theirs) == expected


def row(artifact: str, engine: str, ratio: float, **more: Any) -> dict[str, Any]:
    given = {"threads": 2, "stages": 1, "half": False, "fused": True, "error": "",
             "overflow": "", "difference": 0.01, "same": 7, "of": 7,
             "p50_ms": 50.0, "p95_ms": 60.0, "peak_mb": 300.0,
             "probed": True, "chosen": False}  # fmt: skip
    return {"artifact": artifact, "engine": engine, "ratio": ratio, **given,
            **more}  # fmt: skip


RESULT = {
    "cpu": "a CPU", "cores": 2, "absent": [],
    "rows": [
        row("screening-fp32", "onnxruntime", 5.0), row("screening-fp32", "torch", 10.0),
        row("screening-fp32", "onnxruntime", 9.0, fused=False),
        row("screening-fp32", "onnxruntime", 7.0, threads=1),
        row("screening-int8", "openvino", 1.0, chosen=True),
        row("screening-int8", "onnxruntime", 4.5, overflow="stem"),
    ],
}  # fmt: skip


def test_gains_are_ratios_on_all_cores() -> None:
    assert table.gains(RESULT).cells == [
        ("screening", "INT8 on openvino", "FP32 on onnxruntime", "0.20", "5.0"),
        ("screening", "INT8 on openvino", "FP32 on torch", "0.10", "10.0"),
        ("screening", "INT8 on onnxruntime", "FP32 on onnxruntime", "0.90", "1.1"),
        ("screening", "FP32 on onnxruntime", "FP32 on onnxruntime, not fused", "0.56", "1.8"),
    ]


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_prints_ways_gains_and_what_is_not_here(
    as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(matrix, "run_probe", lambda *given: asked.append(given[:1]) or RESULT)
    words = ["probe", "--model", "own-screening", *(["--json"] if as_json else [])]
    done = CliRunner().invoke(command.app, words, env={"COLUMNS": "200"})
    assert asked == [(["own-screening"],)]
    if as_json:
        assert json.loads(done.stdout)["rows"] == RESULT["rows"]
    else:
        for words in ("7 of 7", "yes, 0.010", "may cut off sums", "not fused", "monai is not inst"):
            assert words in " ".join(done.stdout.split())


@pytest.mark.usefixtures("short")
def test_without_a_reference_no_way_is_correct(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([(), *[(np.zeros((1, 5, 24, 24, 28), np.float32),)] * 9])
    monkeypatch.setattr(matrix, "_measured", lambda _, way, *__: (way, next(answers)))
    result = run_probe(["bright-screening"], weights)
    assert not any(row["chosen"] for row in result["rows"])
    assert {row["error"] for row in result["rows"][1:]} == {"its reference crashed"}


def test_a_model_without_its_settings_is_named_before_anything_is_measured(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "_measured", None)
    manifest = weights / "manifest.toml"
    manifest.write_text(manifest.read_text().replace("calibration", "other"))
    every.cache_clear()
    with pytest.raises(UnfitArtifact, match="bright-screening: calibration = None, expected 2 num"):
        run_probe(["bright-screening"], weights)
