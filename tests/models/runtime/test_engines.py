import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from models.runtime import engines
from models.runtime.artifacts import find
from models.runtime.engines import Outputs, Runner, start

SAMPLE = [np.arange(8, dtype=np.float32)[:, None]]


@cache
def running(name: str, half: bool, threads: int) -> Runner:
    """A shipped artifact on openvino; one compiles for seconds."""
    return start("openvino", find(name).content(), threads, half=half)


@pytest.mark.parametrize(
    ("name", "half", "threads"),
    [
        ("hybrid-int8", False, 1),
        pytest.param("hybrid-int8", True, 2, marks=pytest.mark.long),
        pytest.param("hybrid-fp32", False, 2, marks=pytest.mark.long),
    ],
)
def test_a_batch_is_answered_as_its_rois_are_alone(name: str, half: bool, threads: int) -> None:
    run = running(name, half, threads)
    batch = np.random.default_rng(0).integers(0, 256, (13, 1, 48, 48, 48), dtype=np.uint8)
    alone = [run(batch[i : i + 1]) for i in range(len(batch))]
    for together, *each in zip(run(batch), *alone, strict=True):
        np.testing.assert_allclose(together, np.concatenate(each), atol=1e-3)


@pytest.mark.parametrize(
    ("batch", "threads", "parts"), [(8, 1, 1), (8, 2, 2), (8, 16, 8), (4, 3, 2), (1, 8, 1)]
)
def test_a_batch_is_parted_among_the_cores(batch: int, threads: int, parts: int) -> None:
    """Into as many equal parts as there are threads, or the next smaller number that divides it."""
    assert engines._streams(batch, threads) == parts


@pytest.mark.long
def test_what_is_float_beside_integers_may_be_coarser() -> None:
    """Not in a file that is float throughout, nor in one whose only float layer is the answer."""
    coarse = {name for name in ("hybrid-int8", "hybrid-fp32", "screening-int8", "screening-fp32")
              if find(name).half}  # fmt: skip
    assert coarse == {"hybrid-int8"}
    # a nodule of 12 mm in lung: what is answered, and its outline
    away = np.linalg.norm(np.moveaxis(np.indices((48, 48, 48)), 0, 3) - 23.5, axis=3)
    grey = np.where(away < 6, 186, 26) + np.random.default_rng(0).normal(0, 5, away.shape)
    roi = grey.clip(0, 255).astype(np.uint8)[None, None]
    (*exact, drawn), (*near, coarser) = (
        running("hybrid-int8", *of)(roi) for of in ((False, 1), (True, 2))
    )
    for a, b in zip(exact, near, strict=True):
        np.testing.assert_allclose(a, b, atol=0.1)
    both, each = ((drawn > 0) & (coarser > 0)).sum(), (drawn > 0).sum() + (coarser > 0).sum()
    assert 2 * both / each > 0.99


def test_bytes_may_differ_by_a_level() -> None:
    """Parts of a model hand rounded numbers on; a whole level is the least that they differ by."""
    one = np.array([[1, 200]], np.uint8)
    assert engines._same((one,), [one + 1])
    assert not engines._same((one,), [one + 2])


def test_a_size_that_is_answered_wrongly_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As openvino does with a free batch on some machines."""
    asked: list[int] = []

    def compiled(size: int) -> Runner:
        def run(*batch: npt.NDArray[Any]) -> Outputs:
            asked.append(size)
            return (batch[0] * (3 if size == 4 else 2),)

        return run

    monkeypatch.setattr(engines, "BATCHES", (4, 8))
    run = engines._in_batches(compiled, SAMPLE)
    asked.clear()
    (found,) = run(np.arange(14, dtype=np.float32)[:, None])
    np.testing.assert_array_equal(found[:, 0], 2 * np.arange(14))
    assert asked == [8] + [1] * 6


def test_no_engine_reports_its_use_to_its_maker(tmp_path: Path) -> None:
    """Each leaves an identifier in the home folder where it does; CI silences one of them."""
    code = """
import models.runtime.engines as engines
from models.runtime.artifacts import find
for engine in ("onnxruntime", "openvino"):
    engines.start(engine, find("screening-small-int8").content(), 1)
"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment | home)
    left = [str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*") if one.is_file()]
    assert all(one.startswith(".cache/overread/compiled/") for one in left)


def test_threads_of_onnxruntime_that_wait_take_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, options = onnxruntime.InferenceSession, list[Any]()

    def open_it(content: bytes, given: Any, **more: Any) -> Any:
        options.append(given)
        return opened(content, given, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_it)
    start("onnxruntime", find("screening-small-int8").content(), 2)
    for threads in ("intra", "inter"):
        entry = f"session.{threads}_op.allow_spinning"
        assert options[0].get_session_config_entry(entry) == "0"
