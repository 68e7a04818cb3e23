"""The two engines behind one interface: an ONNX file's bytes in, a callable out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import openvino

from models.runtime import hardware
from models.runtime.errors import EngineUnavailable, ModelFailed

Outputs = tuple[npt.NDArray[np.float32], ...]
Runner = Callable[..., Outputs]
"""Takes the model's inputs in the order of the file, one array ``(n, ...)`` each."""

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
        if threads < hardware.cores():  # else the parts of a model would share one core
            options["ENABLE_CPU_PINNING"] = "NO"
        options["INFERENCE_PRECISION_HINT"] = "f32"  # else bf16, which is not what was asked for
    one_by_one = _fix_batch(model)
    compiled = core.compile_model(model, device or "CPU", options)
    request = compiled.create_infer_request()
    outputs = [compiled.output(index) for index in range(len(compiled.outputs))]

    def run(*batch: npt.NDArray[Any]) -> Outputs:
        answer = request.infer(dict(enumerate(batch)), share_inputs=True)
        return tuple(_plain(np.array(answer[output])) for output in outputs)

    def run_each(*batch: npt.NDArray[Any]) -> Outputs:
        answers = [run(*(one[i : i + 1] for one in batch)) for i in range(len(batch[0]))]
        return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))

    return run_each if one_by_one else run


def _fix_batch(model: openvino.Model) -> bool:
    """Fixes the batch at 1 where nothing else is free; returns whether it did.

    openvino 2026.4 gives wrong answers for the INT8 hybrid with a free batch on a CPU without
    AMX, and right ones with a fixed one; the probe would leave it out.
    """
    shapes = [given.partial_shape for given in model.inputs]
    if any(batch.is_static or any(side.is_dynamic for side in o) for batch, *o in shapes):
        return False
    model.reshape({i: [1, *(side.get_length() for side in o)] for i, (_, *o) in enumerate(shapes)})
    return True


def _plain(out: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Floats as float32; bytes, which cross between the parts of a model, as they are."""
    return out if np.issubdtype(out.dtype, np.integer) else np.asarray(out, np.float32)


def _start_onnxruntime(content: bytes, provider: str, threads: int) -> Runner:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    provider, _, number = provider.partition(":")
    providers = [(provider, {"device_id": number} if number else {})] if provider else []
    session = onnxruntime.InferenceSession(
        content, options, providers=[*providers, "CPUExecutionProvider"]
    )
    if provider and session.get_providers()[0] != provider:
        raise EngineUnavailable(f"onnxruntime fell back from {provider}")
    names = [given.name for given in session.get_inputs()]

    def run(*batch: npt.NDArray[Any]) -> Outputs:
        given = dict(zip(names, batch, strict=True))
        return tuple(_plain(out) for out in session.run(None, given))

    return run


def checked(engine: str, run: Runner) -> Runner:
    """The same runner; what goes wrong inside it comes out as `ModelFailed`."""

    def answer(*batch: npt.NDArray[Any]) -> Outputs:
        shape = batch[0].shape
        try:
            outputs = run(*batch)
        except Exception as error:  # an engine's own errors have no common class
            raise ModelFailed(f"{engine} failed on an input of {shape}: {error}") from error
        if not all(np.isfinite(out).all() for out in outputs):
            raise ModelFailed(f"{engine} gave values that are not finite for {shape}")
        return outputs

    return answer
