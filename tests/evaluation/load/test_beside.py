"""The cloud beside other servers."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.errors import ServiceFailed
from evaluation.load.beside import (
    RAY,
    REQUESTS,
    SETTINGS,
    STREAMS,
    TRITON,
    TRITON_PLAIN,
    as_dict,
    contenders,
)
from evaluation.load.generator import Arrival, Edges, Outcome, Outcomes
from evaluation.load.load import Plan, Run
from evaluation.load.peers import described, triton_config

TIMES_MS = (20.0, 5.0)


def interpreter(name: str) -> Path:
    """The interpreter that the environment names, or a skip."""
    if not (given := os.environ.get(name)):
        pytest.skip(f"{name} names no interpreter; docs/budget.md tells how to make one")
    return Path(given)


async def answered(edges: Edges) -> Outcomes:
    async with edges:
        return await edges.send([Arrival(0.0, 0, 3, 30.0), Arrival(0.1, 1, 2, 30.0)])


def test_the_cloud_is_called_both_ways() -> None:
    with contenders(None, None, TIMES_MS) as started:
        assert [one.mode for one in started] == [STREAMS, REQUESTS]
        for one in started:
            assert len(asyncio.run(answered(one.connect(2))).in_time) == 5
        assert {one.model_time() for one in started} == {started[0].model_time()}


@pytest.mark.parametrize(
    ("name", "modes"),
    [("OVERREAD_TRITON_PYTHON", [TRITON, TRITON_PLAIN]), ("OVERREAD_RAY_PYTHON", [RAY])],
)
def test_another_server_answers_the_same_requests(name: str, modes: list[str]) -> None:
    python = interpreter(name)
    given = (python, None) if modes != [RAY] else (None, python)
    with contenders(*given, TIMES_MS) as (_, _, *others):
        assert [one.mode for one in others] == modes
        for one in others:
            assert len(asyncio.run(answered(one.connect(2))).in_time) == 5


def test_the_command_names_what_is_left_out() -> None:
    options = ["--rounds", "1", "--seconds", "0.5", "--loads", "0.5", "--json"]
    done = CliRunner().invoke(app, ["beside", *options])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["left_out"] == ["Triton", "Ray Serve"]
    assert set(result["capacity_per_s"]) == {STREAMS, REQUESTS}
    assert [run["mode"] for run in result["runs"]] == [STREAMS, REQUESTS]


def test_the_result_has_the_settings_of_those_that_ran() -> None:
    plan = Plan(loads=(2.0,), rounds=1, span_s=2.0)
    rois = [Outcome(0, True, 0.1, 0.5), Outcome(1, False, 0.002, 0.5, "UNAVAILABLE: full")]
    runs = [Run(mode, 2.0, Outcomes(rois=rois), 0.0, 0.0) for mode in (REQUESTS, TRITON)]
    result = as_dict(plan, {REQUESTS: [1.0], TRITON: [0.5]}, runs)
    assert result["settings"] == {TRITON: SETTINGS[TRITON]}
    for run in result["runs"]:
        assert run["goodput_of_capacity"] == pytest.approx(0.5)
        assert (run["stat_p50_ms"], run["refusal_p50_ms"]) == pytest.approx((100.0, 2.0))
        assert "wasted_share" not in run
    json.dumps(result, allow_nan=False)


def test_triton_is_configured_in_its_text_format() -> None:
    text = triton_config(SETTINGS[TRITON], TIMES_MS)
    assert "data_type: TYPE_UINT8" in text
    assert 'name: "ROI"' in text
    assert "timeout_action: REJECT, allow_timeout_override: true, max_queue_size: 48" in text
    assert '{key: "fixed_ms", value: {string_value: "20.0"}}' in text


def test_an_interpreter_without_the_server_is_named() -> None:
    with pytest.raises(ServiceFailed, match=r"lacks ray.*no_such_module"):
        described(Path(sys.executable), "import no_such_module", "ray[serve]")


def test_reader_needs_two_numbers() -> None:
    done = CliRunner().invoke(app, ["beside", "--reader", "20"])
    assert done.exit_code == 2
    assert "--reader" in done.output
