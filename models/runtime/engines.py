"""The two engines behind one interface: an ONNX file's bytes in, a callable out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import openvino

from models.runtime.errors import EngineUnavailable, ModelFailed

Outputs = tuple[npt.NDArray[np.float32], ...]
Runner = Callable[[npt.NDArray[Any]], Outputs]

_log = logging.getLogger(__name__)


def start(engine: str, content: bytes, threads: int) -> Runner:
    """The model of an ONNX file, ready on one engine; it takes inputs of any size.

    Raises:
        EngineUnavailable: the engine is not here, or does not take the model.
    """
    family, _, device = engine.partition(":")
    starters = {"openvino": _start_openvino, "onnxruntime": _start_onnxruntime}
    if family not in starters:
        raise EngineUnavailable(f"engine {engine!r} is unknown; there are: {', '.join(starters)}")
    try:
        return starters[family](content, device, threads)
    except Exception as error:  # both engines raise bare RuntimeErrors and worse
        raise EngineUnavailable(f"{engine} does not take the model: {error}") from error


def _start_openvino(content: bytes, device: str, threads: int) -> Runner:
    core = openvino.Core()
    model = core.read_model(content)
    options = {"PERFORMANCE_HINT": "LATENCY"}
    if not device:
        options["INFERENCE_NUM_THREADS"] = str(threads)
    if not device and b"QuantizeLinear" not in content:
        options["INFERENCE_PRECISION_HINT"] = "f32"  # else bf16, which is not what was asked for
    one_by_one = _fix_batch(model)
    compiled = core.compile_model(model, device or "CPU", options)
    request = compiled.create_infer_request()
    outputs = [compiled.output(index) for index in range(len(compiled.outputs))]

    def run(batch: npt.NDArray[Any]) -> Outputs:
        answer = request.infer({0: batch}, share_inputs=True)
        return tuple(np.array(answer[output], np.float32) for output in outputs)

    def run_each(batch: npt.NDArray[Any]) -> Outputs:
        answers = [run(batch[i : i + 1]) for i in range(len(batch))]
        return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))

    return run_each if one_by_one else run


def _fix_batch(model: openvino.Model) -> bool:
    """Fixes the batch at 1 where nothing else is free; returns whether it did.

    openvino 2026.4 gives wrong answers for the INT8 hybrid with a free batch on a CPU without
    AMX, and right ones with a fixed one; the probe would leave it out.
    """
    batch, *others = model.input(0).partial_shape
    if batch.is_static or any(side.is_dynamic for side in others):
        return False
    model.reshape([1, *(side.get_length() for side in others)])
    return True


def _start_onnxruntime(content: bytes, provider: str, threads: int) -> Runner:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = [provider] if provider else []
    session = onnxruntime.InferenceSession(
        content, options, providers=[*providers, "CPUExecutionProvider"]
    )
    if provider and session.get_providers()[0] != provider:
        raise EngineUnavailable(f"onnxruntime fell back from {provider}")
    name = session.get_inputs()[0].name

    def run(batch: npt.NDArray[Any]) -> Outputs:
        return tuple(np.asarray(out, np.float32) for out in session.run(None, {name: batch}))

    return run


def checked(engine: str, run: Runner) -> Runner:
    """The same runner; what goes wrong inside it comes out as `ModelFailed`."""

    def answer(batch: npt.NDArray[Any]) -> Outputs:
        try:
            outputs = run(batch)
        except Exception as error:  # an engine's own errors have no common class
            raise ModelFailed(f"{engine} failed on an input of {batch.shape}: {error}") from error
        if not all(np.isfinite(out).all() for out in outputs):
            raise ModelFailed(f"{engine} gave values that are not finite for {batch.shape}")
        return outputs

    return answer
