import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imaging.phantom.phantom import PhantomSpec, make_phantom
from imaging.preprocess import preprocess
from models.runtime import choice, engines, hardware
from models.runtime.artifacts import Artifact, find
from models.runtime.choice import (
    TOLERANCE,
    Way,
    choose,
    difference,
    recall,
    remember,
    sample,
)  # fmt: skip
from models.runtime.engines import start
from models.runtime.errors import EngineUnavailable
from models.runtime.session import open_session

BOTH = ("openvino", "onnxruntime")


def known(artifact: Artifact, cache: Path, *ways: Way) -> Path:
    remember(artifact, ways, cache)
    return cache


def test_auto_takes_a_correct_engine_and_keeps_what_was_measured(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not measured again; a damaged file, or one of an earlier version, is no obstacle."""
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / ".cache" / "overread" / "engines.json"
    artifact = find("bright-screening", weights)
    session = open_session(artifact, threads=1)
    assert session.engine in hardware.engines()
    ((key, entry),) = json.loads(cache.read_text()).items()
    assert {way["engine"] for way in entry["ways"]} == set(hardware.engines())
    assert (entry["artifact"], entry["machine"]) == (
        f"bright-screening {artifact.version}", hardware.fingerprint(),
    )  # fmt: skip
    for content in ("{", json.dumps({key: "onnxruntime"}), json.dumps({key: {"ways": [{"x": 1}]}})):
        cache.write_text(content)
        open_session(artifact, threads=1)
        assert len(recall(artifact, cache)[0]) == len(hardware.engines())
    monkeypatch.setattr(choice, "_measured", pytest.fail)
    assert open_session(artifact, threads=1).engine in hardware.engines()


@pytest.mark.parametrize(
    "change",
    [
        lambda patch, _: patch.setattr(hardware, "fingerprint", lambda: "another machine"),
        lambda patch, _: patch.setattr(choice, "LAYOUT", choice.LAYOUT + 1),
        lambda _patch, artifact: replace(artifact, sha256="0" * 64),
    ],
    ids=["machine or version", "layout", "artifact"],
)
def test_what_was_measured_elsewhere_is_not_used(
    change: Callable[..., Any], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = find("bright-screening", weights)
    cache = known(artifact, weights / "cache.json", Way("onnxruntime", 1, probed=True))
    changed = change(monkeypatch, artifact) or artifact
    assert recall(changed if isinstance(changed, Artifact) else artifact, cache) == ([], ())


@pytest.mark.parametrize(
    ("engine", "threads", "expected"),
    [
        ("auto", 0, ("openvino", 3)),
        ("auto", 1, ("onnxruntime", 1)),
        ("openvino", 0, ("openvino", 3)),
        ("onnxruntime", 0, ("onnxruntime", 1)),
        ("openvino", 1, ("openvino", 1)),
        ("openvino", 5, ("openvino", 5)),
    ],
)
def test_the_probe_chooses_threads_only_where_the_settings_leave_them(
    engine: str, threads: int, expected: tuple[str, int], weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A number that the settings give is used, also one that nobody measured."""
    monkeypatch.setattr(hardware, "engines", lambda: BOTH)
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    artifact, ms = find("bright-screening", weights), {1: 40.0, 3: 20.0, 4: 30.0}
    ways = [Way("openvino", n, p50_ms=time, probed=True) for n, time in ms.items()]
    ways += [Way("onnxruntime", n, p50_ms=n + 22.0, probed=True) for n in ms]
    chosen = choose(artifact, engine, threads, known(artifact, weights / "cache.json", *ways))
    assert (chosen.engine, chosen.threads) == expected


def test_a_start_at_another_number_of_threads_measures_that(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two programs on a machine does not take what the other measured at a start."""
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    artifact = find("bright-screening", weights)
    cache = known(artifact, weights / "cache.json", *(Way(e, 1) for e in hardware.engines()))
    assert choose(artifact, threads=0, cache=cache).threads == 2
    assert {way.threads for way in recall(artifact, cache)[0]} == {1, 2}


def test_without_a_home_the_choice_is_not_kept(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system user without a home folder can open a model."""

    def homeless(path: Path) -> Path:
        raise RuntimeError(f"no home for {path}")

    monkeypatch.setattr(Path, "expanduser", homeless)
    session = open_session(find("bright-screening", weights), threads=1)
    assert session.engine in hardware.engines()


@pytest.mark.parametrize("fast", [0, 1])
def test_the_fastest_engine_is_taken(
    fast: int, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "engines", lambda: BOTH)
    took = [1.0 if number // choice.PASSES == fast else 10.0 for number in range(6)]
    ticks = iter([tick for t in took for tick in (0.0, t)])
    chosen = choose(find("bright-screening", weights), cache=None, clock=lambda: next(ticks))
    assert chosen.engine == BOTH[fast]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"difference": 0.06}, "differs by 0.060"),
        ({"difference": float("nan")}, "differs by nan"),
        ({"overflow": "stem"}, "may cut off sums of 8-bit products with stem"),
        ({"error": "crashed"}, "crashed"),
    ],
)
def test_an_incorrect_engine_is_never_chosen(wrong: dict[str, Any], reason: str) -> None:
    artifact = find("screening-small-int8")
    fast, slow = Way("openvino", 1, p50_ms=1, **wrong), Way("onnxruntime", 1, p50_ms=9)
    assert reason in fast.wrong("int8")
    for ways, engine in (((fast, slow), "onnxruntime"), ((fast, replace(slow, **wrong)), None)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choice, "recall", lambda *_, ways=ways: (list(ways), BOTH))
            patch.setattr(hardware, "engines", lambda: BOTH)
            if engine:
                assert choose(artifact, threads=1, cache=None).engine == engine
            else:
                with pytest.raises(EngineUnavailable, match=reason):
                    choose(artifact, threads=1, cache=None)


def test_without_vnni_openvino_runs_what_cannot_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another file it runs only where the settings name it, and the log names the weights."""
    monkeypatch.setattr(hardware, "adds_in_16_bits", lambda: True)
    monkeypatch.setattr(choice, "overflowing", lambda _: "")
    own, cache = find("screening-small-int8"), tmp_path / "cache.json"
    assert choose(own, cache=cache, device="cpu").engine in BOTH
    assert not any(way.wrong("int8") for way in recall(own, cache)[0])
    monkeypatch.setattr(choice, "overflowing", lambda _: "some_weights")
    assert choose(own, threads=1, cache=cache, device="cpu").engine == "onnxruntime"
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert choose(own, "openvino", cache=None).engine == "openvino"
        assert choose(own, "onnxruntime", cache=None).engine == "onnxruntime"
    (said,) = caplog.messages
    assert said.startswith("screening-small-int8 on openvino: it may cut off sums")
    assert "some_weights" in said


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", ["screening", pytest.param("hybrid", marks=pytest.mark.long)])
def test_shipped_artifacts_agree_on_all_engines_with_the_reference(
    kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BATCHES", (8,))  # each size compiles for seconds
    artifact = find(f"{kind}-{precision}")
    voxels, content = sample(artifact), artifact.content()
    truth = start("onnxruntime", content, 2, fused=False)(voxels)
    for engine in BOTH:
        assert difference(start(engine, content, 2)(voxels), truth) <= TOLERANCE[precision]


@pytest.mark.parametrize("side", [32, 48, 64])
def test_regions_of_the_sample_lie_around_their_centres(side: int) -> None:
    artifact = find("hybrid-int8")
    regions = sample(replace(artifact, settings={"roi_shape": [side] * 3}))
    assert regions.shape == (8, 1, side, side, side)
    inner = slice(side // 2 - 16, side // 2 + 16)
    np.testing.assert_array_equal(regions[0, 0, inner, inner, inner][:, :, 2:],
                                  sample(artifact)[0, 0, 8:40, 8:40, 8:40][:, :, 2:])  # fmt: skip


@pytest.mark.long
def test_the_sample_is_a_part_of_a_phantom() -> None:
    """But for a few voxels, which processors compute differently."""
    box = sample(find("screening-int8"))[0, 0]
    spec = PhantomSpec(seed=8, nodule_count=14, diameter_mm=(4, 14), dose_noise_hu=8.0)
    whole = preprocess(make_phantom(spec).volume).voxels
    z, y, x = 130, 53, 24
    assert (box != whole[z : z + 96, y : y + 96, x : x + 112]).mean() < 1e-3


@pytest.mark.parametrize(
    ("device", "engine", "chosen"),
    [
        ("cuda", "auto", "onnxruntime:CUDAExecutionProvider:0"),
        ("cuda:1", "onnxruntime", "onnxruntime:CUDAExecutionProvider:1"),
        ("GPU.0", "auto", "openvino:GPU.0"),
        ("NPU", "openvino", "openvino:NPU"),
        ("cpu", "onnxruntime", "onnxruntime"),
        ("", "openvino:GPU.0", "openvino:GPU.0"),
    ],
)
def test_a_device_names_its_engine(weights: Path, device: str, engine: str, chosen: str) -> None:
    artifact = find("bright-screening", weights)
    assert choose(artifact, engine, device=device, cache=None).engine == chosen


def test_auto_on_the_processor_tries_no_accelerator(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "engines", lambda: ("openvino:GPU.0",))
    artifact, cache = find("bright-screening", weights), weights / "cache.json"
    assert choose(artifact, "auto", 1, cache, "cpu").engine in BOTH
    assert {way.engine for way in recall(artifact, cache)[0]} == set(BOTH)
