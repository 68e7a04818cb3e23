import json
from pathlib import Path

import numpy as np
import pytest

from models.runtime import engines, hardware
from models.runtime import session as opened
from models.runtime.artifacts import find
from models.runtime.choice import TOLERANCE, chosen_engine, fastest, probe_input
from models.runtime.errors import EngineUnavailable, ModelFailed, UnfitArtifact
from models.runtime.screener import open_screener
from models.runtime.second_reader import open_second_reader
from models.runtime.session import open_session


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_both_engines_give_the_same_answer(weights: Path, engine: str) -> None:
    voxels = np.zeros((1, 1, 8, 8, 8), np.uint8)
    voxels[0, 0, 4:, 4:, 4:] = 255
    session = open_session(find("bright-screening", weights), engine=engine, threads=1)
    (maps,) = session.run(voxels)
    assert maps.shape == (1, 5, 2, 2, 2)
    assert session.engine == engine
    np.testing.assert_allclose(maps[0, 0].ravel(), [-10] * 7 + [10], atol=1e-4)


@pytest.mark.parametrize(
    ("engine", "named"),
    [("tensorflow", "openvino, onnxruntime"), ("onnxruntime:NoSuchProvider", "NoSuchProvider")],
)
def test_an_engine_that_is_missing_is_refused(weights: Path, engine: str, named: str) -> None:
    with pytest.raises(EngineUnavailable, match=named):
        open_session(find("bright-screening", weights), engine=engine)


def test_a_wrong_input_is_a_model_failure(weights: Path) -> None:
    session = open_session(find("bright-screening", weights), engine="onnxruntime")
    with pytest.raises(ModelFailed, match="onnxruntime"):
        session.run(np.zeros((1, 3, 8, 8, 8), np.uint8))


def test_auto_takes_a_correct_engine_and_keeps_the_choice(weights: Path, tmp_path: Path) -> None:
    """The probe names an engine of this machine, and is not repeated; damage is no obstacle."""
    cache = tmp_path / "cache" / "engines.json"
    artifact = find("bright-screening", weights)
    session = open_session(artifact, threads=1, probe_cache=cache)
    assert session.engine in hardware.engines()
    (key,) = json.loads(cache.read_text())
    assert artifact.sha256 in key
    cache.write_text(json.dumps({key: "onnxruntime"}))
    assert open_session(artifact, threads=1, probe_cache=cache).engine == "onnxruntime"
    cache.write_text("{")
    open_session(artifact, threads=1, probe_cache=cache)
    assert json.loads(cache.read_text())


def test_without_a_home_the_choice_is_not_kept(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system user who has no home folder opens a model all the same."""

    def homeless(path: Path) -> Path:
        raise RuntimeError(f"no home for {path}")

    monkeypatch.setattr(Path, "expanduser", homeless)
    session = open_session(find("bright-screening", weights), threads=1)
    assert session.engine in hardware.engines()


def test_the_probe_takes_the_faster_engine(weights: Path) -> None:
    ticks = iter([0, 10, 20, 30, 40, 50, *(60 + 0.001 * n for n in range(100))])
    artifact = find("bright-screening", weights)
    chosen = fastest(artifact, probe_input(artifact), 1, None, clock=lambda: float(next(ticks)))
    assert chosen != "onnxruntime"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", ["screening", pytest.param("hybrid", marks=pytest.mark.long)])
def test_shipped_artifacts_agree_on_both_engines(
    kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BATCHES", (8,))  # each size compiles for seconds
    artifact = find(f"{kind}-{precision}")
    sample = probe_input(artifact)
    one, other = (
        open_session(artifact, engine=engine).run(sample) for engine in ("openvino", "onnxruntime")
    )
    # without VNNI sums of two products are cut off at 16 bits: such an engine is not chosen there
    tolerance = TOLERANCE[precision] * (2 if precision == "int8" else 1)
    for a, b in zip(one, other, strict=True):
        spread = max(float(b.std()), 1.0)
        assert np.sqrt(np.mean((a - b) ** 2)) / spread <= tolerance


@pytest.fixture
def shelf(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The readers look for artifacts in this folder."""
    monkeypatch.setattr(opened, "find", lambda name, _folder, keys: find(name, weights, keys))
    return weights


@pytest.mark.usefixtures("shelf")
def test_each_reader_opens_its_kind() -> None:
    assert open_screener("bright-screening", engine="onnxruntime").name == "bright-screening"
    reader = open_second_reader("bright-hybrid", engine="onnxruntime")
    assert (reader.engine, reader.roi_shape) == ("onnxruntime", (8, 8, 8))


@pytest.mark.usefixtures("shelf")
def test_another_kind_is_refused() -> None:
    with pytest.raises(
        UnfitArtifact, match=r"bright-hybrid is of kind 'hybrid', expected 'screening'"
    ):
        open_screener("bright-hybrid")
    with pytest.raises(
        UnfitArtifact, match=r"bright-screening is of kind 'screening', expected 'hybrid'"
    ):
        open_second_reader("bright-screening")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        *(("calibration = [1.0, 0.0]", f"calibration = {given}", "calibration = .*expected 2 num")
          for given in ("[1.0]", "[1.0, nan]", "['a', 'b']", "1.0")),
        ("roi_shape = [8, 8, 8]", "", "roi_shape = None, expected 3 numbers"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(shelf: Path, old: str, new: str, message: str) -> None:
    """Without ``roi_shape`` nobody knows what a hybrid reads."""
    manifest = shelf / "manifest.toml"
    manifest.write_text(manifest.read_text().replace(old, new))
    opens, name = (open_second_reader, "hybrid") if "roi" in old else (open_screener, "screening")
    with pytest.raises(UnfitArtifact, match=f"bright-{name}: {message}"):
        opens(f"bright-{name}")


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
    assert chosen_engine(artifact, engine, device=device) == chosen


@pytest.mark.parametrize(("device", "engine"), [("cuda:0", "openvino"), ("GPU.0", "onnxruntime")])
def test_an_engine_that_does_not_run_on_a_device_is_refused(
    weights: Path, device: str, engine: str
) -> None:
    with pytest.raises(EngineUnavailable, match=f"{engine} does not run on the device"):
        open_session(find("bright-screening", weights), engine=engine, device=device)


def test_a_device_that_is_missing_is_unavailable(weights: Path) -> None:
    with pytest.raises(EngineUnavailable, match="onnxruntime"):
        open_session(find("bright-screening", weights), device="cuda:0")


def test_auto_on_the_processor_tries_no_accelerator(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its choice is cached apart from the one among all engines."""
    monkeypatch.setattr(hardware, "engines", lambda: ("openvino:GPU.0",))
    artifact, cache = find("bright-screening", weights), weights / "cache.json"
    chosen = chosen_engine(artifact, "auto", 1, cache, "cpu")
    assert chosen in ("openvino", "onnxruntime")
    (key,) = json.loads(cache.read_text())
    assert key.endswith("|openvino|onnxruntime")
