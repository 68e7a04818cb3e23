from pathlib import Path

import numpy as np
import pytest

from models.runtime import session as opened
from models.runtime.artifacts import find
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
    ("engine", "device", "says"),
    [
        ("tensorflow", "", "openvino, onnxruntime"),
        ("onnxruntime:NoSuchProvider", "", "NoSuchProvider"),
        ("onnxruntime:CANNExecutionProvider", "", r"\(onnxruntime-cann"),
        ("openvino", "cuda:0", "openvino does not run on the device"),
        ("onnxruntime", "GPU.0", "onnxruntime does not run on the device"),
        ("auto", "cuda:0", "onnxruntime"),
    ],
)
def test_an_engine_or_a_device_that_is_missing_is_named(
    weights: Path, engine: str, device: str, says: str
) -> None:
    with pytest.raises(EngineUnavailable, match=says):
        open_session(find("bright-screening", weights), engine=engine, device=device)


def test_a_wrong_input_is_a_model_failure(weights: Path) -> None:
    session = open_session(find("bright-screening", weights), engine="onnxruntime")
    with pytest.raises(ModelFailed, match="onnxruntime"):
        session.run(np.zeros((1, 3, 8, 8, 8), np.uint8))


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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        *(("calibration = [1.0, 0.0]", f"calibration = {given}", "calibration = .*expected 2 num")
          for given in ("[1.0]", "[1.0, nan]", "['a', 'b']", "1.0", "[true, 0]",
                        f"[1{400 * '0'}, 0]")),
        *(("calibration = [1.0, 0.0]", f"calibration = [{given}, 0]", "calibration = .*a slope ab")
          for given in (0, -2.5)),
        ("roi_shape = [8, 8, 8]", "", "roi_shape = None, expected 3 numbers"),
        ("roi_shape = [8, 8, 8]", "roi_shape = [-1, 8, 8]", ".*roi_shape = .*expected"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(shelf: Path, old: str, new: str, message: str) -> None:
    """Without ``roi_shape`` nobody knows what a hybrid reads."""
    manifest = shelf / "manifest.toml"
    manifest.write_text(manifest.read_text().replace(old, new))
    opens, name = (open_second_reader, "hybrid") if "roi" in old else (open_screener, "screening")
    with pytest.raises(UnfitArtifact, match=f"bright-{name}: {message}"):
        opens(f"bright-{name}")
