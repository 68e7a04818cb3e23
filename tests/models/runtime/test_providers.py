from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from models.runtime import hardware
from models.runtime.artifacts import find
from models.runtime.engines import start
from models.runtime.errors import EngineUnavailable
from models.runtime.providers import ACCELERATORS, Accelerator, absent, options_of

PROVIDERS = [one for one in ACCELERATORS if one.engine.startswith("onnxruntime")]


class Recorded:
    """A session of onnxruntime that keeps how it was opened and runs nothing."""

    def __init__(self, _content: bytes, options: Any, providers: list[Any]) -> None:
        self.options, self.providers = options, providers
        Recorded.last = self

    def get_providers(self) -> list[str]:
        return [one if isinstance(one, str) else one[0] for one in self.providers]

    def get_inputs(self) -> list[Any]:
        return []


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the table's providers are there."""
    names = [one.engine.partition(":")[2] for one in PROVIDERS]
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [*names, "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize("name", ["screening-small-int8", "screening-small-fp32"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("one", PROVIDERS, ids=lambda one: one.device)
def test_each_provider_gets_its_options_and_all_fusions(
    one: Accelerator, half: bool, name: str
) -> None:
    start(f"{one.engine}:1", find(name).content(), 1, half=half)
    (provider, given), cpu = Recorded.last.providers
    assert (f"onnxruntime:{provider}", cpu) == (one.engine, "CPUExecutionProvider")
    int8 = one.int8 if name.endswith("int8") else {}
    assert given == {**one.options, **int8, **(one.half if half else {}), "device_id": "1"}
    levels = onnxruntime.GraphOptimizationLevel
    assert Recorded.last.options.graph_optimization_level == levels.ORT_ENABLE_ALL


@pytest.mark.usefixtures("opened")
def test_engines_of_the_table_are_found_and_the_rest_named() -> None:
    assert set(hardware.engines()) >= {one.engine for one in PROVIDERS}
    assert [one.engine for one in absent(hardware.engines())] == ["openvino:GPU", "openvino:NPU"]
    assert absent(["openvino:GPU.1", *(one.engine for one in PROVIDERS)])[0].device == "Intel NPU"


def test_a_numbered_device_has_the_options_of_its_kind_and_others_have_none() -> None:
    given = {"openvino:GPU.1": {"INFERENCE_PRECISION_HINT": "f32"}, "openvino:OTHER.0": {}}
    given |= {"openvino": {}, "onnxruntime": {}}
    assert {engine: options_of(engine, int8=True, half=False) for engine in given} == given


def test_without_openvino_onnxruntime_runs_alone(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "has_openvino", lambda: False)
    assert hardware.engines() == ("onnxruntime",)
    assert hardware.engines_on("cpu") == ("onnxruntime",)
    with pytest.raises(EngineUnavailable, match="openvino is not installed"):
        start("openvino", find("bright-screening", weights).content(), 1)
