"""The two engines behind one interface: an ONNX file's bytes in, a callable out.

Each has its workaround. openvino runs fixed batch sizes only (`_in_batches`). Operators without
fast kernels are replaced (`models.runtime.rewrites`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from models.runtime import hardware, providers
from models.runtime.compiled import compiled
from models.runtime.errors import EngineUnavailable
from models.runtime.overflow import overflowing
from models.runtime.rewrites import pointwise_products, rewritten

with suppress(ImportError):  # without it, onnxruntime runs alone
    import openvino

Outputs = tuple[npt.NDArray[np.float32], ...]
Runner = Callable[..., Outputs]
"""Takes the model's inputs in the order of the file, one array ``(n, ...)`` each."""

LAYOUT = 7
"""Increase it if models are run differently, so that engines are timed again."""

BATCHES = (2, 4)
"""Batch sizes besides 1 if only the batch axis is free; larger ones gain little."""

_log = logging.getLogger(__name__)


def start(
    engine: str, content: bytes, threads: int, *, half: bool = False, fused: bool = True
) -> Runner:
    """Load an ONNX file on one engine; the model takes inputs of any size.

    With ``half`` its float layers run in bfloat16, on an accelerator in 16 bits. Without ``fused``
    onnxruntime runs layer by layer, quantised ones in float: slow, and exact on every processor.

    Raises:
        EngineUnavailable: the engine is missing, or rejects the model.
    """
    family, _, device = engine.partition(":")
    starters = {"openvino": _start_openvino, "onnxruntime": _start_onnxruntime}
    if family not in starters:
        raise EngineUnavailable(
            f"unknown engine {engine!r}, expected one of: {', '.join(starters)}"
        )
    try:
        return starters[family](rewritten(content), device, threads, half, fused)
    except Exception as error:  # both engines raise bare RuntimeErrors and worse
        reason = " ".join(str(error).split())  # openvino's has several lines
        raise EngineUnavailable(f"{engine} rejects the model: {reason}") from error


def _start_openvino(content: bytes, device: str, threads: int, half: bool, _fused: bool) -> Runner:
    if not hardware.has_openvino():
        raise EngineUnavailable("openvino is not installed")
    core, content = openvino.Core(), pointwise_products(content)
    model = core.read_model(content)
    int8 = b"QuantizeLinear" in content
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        **providers.options_of(f"openvino:{device}", int8=int8, half=half),
    }
    if not device:
        options["INFERENCE_NUM_THREADS"] = str(threads)
        if threads < hardware.cores():  # else the parts of a split model would share one core
            options["ENABLE_CPU_PINNING"] = "NO"
        # by default it uses bf16 where it can, also for layers that must stay exact
        options["INFERENCE_PRECISION_HINT"] = "bf16" if half else "f32"

    sides = _sides(model)

    def batches_of(batch: int) -> Runner:
        streams = 1 if device else _streams(batch, threads)
        parallel = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(streams)}
        chosen = {**options, **(parallel if streams > 1 else {})}
        return _requests(loaded(chosen, [[batch // streams, *one] for one in sides]), streams)

    def loaded(chosen: dict[str, str], shapes: list[list[int]]) -> openvino.CompiledModel:
        def compile_it() -> openvino.CompiledModel:
            if shapes:
                model.reshape(dict(enumerate(shapes)))
            return core.compile_model(model, device or "CPU", chosen)

        if device:
            return compile_it()
        return compiled(core, repr(shapes).encode() + content, compile_it, chosen)

    if sides:
        return _in_batches(batches_of, _samples(model, sides))
    return _requests(loaded(options, []), 1)


def _streams(batch: int, threads: int) -> int:
    """Return in how many parallel parts a batch is read, each on its own cores.

    Cores that share one input wait for each other at every layer.
    """
    return max(parts for parts in range(1, min(batch, threads) + 1) if batch % parts == 0)


def _requests(compiled: openvino.CompiledModel, count: int) -> Runner:
    """Make a runner of a batch in ``count`` equal parts in parallel."""
    requests = [compiled.create_infer_request() for _ in range(count)]
    outputs = range(len(compiled.outputs))

    def run(*batch: npt.NDArray[Any]) -> Outputs:
        parts = zip(*(np.split(one, count) if count > 1 else [one] for one in batch), strict=True)
        given = [dict(enumerate(part)) for part in parts]  # kept: the engine reads them in place
        with ExitStack() as under_way:
            for request, part in zip(requests, given, strict=True):
                request.start_async(part, share_inputs=True)
                under_way.callback(request.wait)
        found = [[np.array(r.get_output_tensor(i).data) for r in requests] for i in outputs]
        return tuple(_plain(one[0] if count == 1 else np.concatenate(one)) for one in found)

    return run


def _in_batches(compiled: Callable[[int], Runner], sample: Sequence[npt.NDArray[Any]]) -> Runner:
    """Make a runner of batches of any size from runners of fixed sizes, the largest first.

    On a CPU without AMX, openvino 2026.4 gives wrong results for the INT8 hybrid with a dynamic
    batch size and correct results with a fixed batch size. A size whose answers for ``sample`` are
    not those of single ROIs is not used.
    """
    runners = {1: compiled(1)}
    alone = _in_pieces(runners, sample)
    for size in BATCHES:
        try:
            runner = compiled(size)
            if not _same(runner(*(one[:size] for one in sample)), [out[:size] for out in alone]):
                raise ValueError("its answers differ from those of single inputs")
        except Exception as error:  # the engine's own errors have no common class
            _log.warning("batch size %d is not used: %s", size, error)
        else:
            runners[size] = runner
    return lambda *batch: _in_pieces(runners, batch)


def _in_pieces(runners: Mapping[int, Runner], batch: Sequence[npt.NDArray[Any]]) -> Outputs:
    done, answers = 0, []
    for size in sorted(runners, reverse=True):
        while len(batch[0]) - done >= size:
            answers.append(runners[size](*(one[done : done + size] for one in batch)))
            done += size
    if len(answers) == 1:
        return answers[0]
    return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))


def _sides(model: openvino.Model) -> list[list[int]]:
    """Return the fixed sides of each input if only the batch axis is free; else nothing."""
    shapes = [given.partial_shape for given in model.inputs]
    if any(batch.is_static or any(side.is_dynamic for side in o) for batch, *o in shapes):
        return []
    return [[side.get_length() for side in others] for _, *others in shapes]


def _samples(model: openvino.Model, sides: Sequence[Sequence[int]]) -> list[npt.NDArray[Any]]:
    """Return random values for each input, for the largest batch."""
    rng, samples = np.random.default_rng(0), []
    for given, side in zip(model.inputs, sides, strict=True):
        kind = given.element_type.to_dtype()
        top = 255 if np.issubdtype(kind, np.integer) else 1
        samples.append((top * rng.random((max(BATCHES), *side))).astype(kind))
    return samples


def _same(found: Outputs, wanted: Sequence[npt.NDArray[Any]]) -> bool:
    """Return whether outputs differ by one level of integers, or by 1 % of the spread, at most."""
    return all(
        float(np.abs(a.astype(np.float32) - b).max())
        <= (1.0 if np.issubdtype(b.dtype, np.integer) else 0.01 * max(float(np.std(b)), 1.0))
        for a, b in zip(found, wanted, strict=True)
    )


def _plain(out: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return floats as float32; integers, which pass between the parts of a model, as they are."""
    return out if np.issubdtype(out.dtype, np.integer) else np.asarray(out, np.float32)


def _start_onnxruntime(
    content: bytes, device: str, threads: int, half: bool, fused: bool
) -> Runner:
    import onnxruntime  # here, since the other engine does without

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fused else levels.ORT_DISABLE_ALL
    for threads_of in ("intra", "inter"):  # waiting threads would take the cores of other work
        options.add_session_config_entry(f"session.{threads_of}_op.allow_spinning", "0")
    if overflowing(content):  # exact kernels where the processor's usual ones cut off sums
        options.add_session_config_entry("session.x64quantprecision", "1")
    provider, _, number = device.partition(":")
    if provider and provider not in (known := onnxruntime.get_available_providers()):
        named = (a for a in providers.ACCELERATORS if a.engine.endswith(provider))
        package = next((f" ({one.package})" for one in named), "")
        raise EngineUnavailable(
            f"this onnxruntime has no {provider}{package}, only {', '.join(known)}"
        )
    int8 = b"QuantizeLinear" in content
    chosen = providers.options_of(f"onnxruntime:{device}", int8=int8, half=half)
    chosen |= {"device_id": number} if number else {}
    session = onnxruntime.InferenceSession(
        content, options, providers=[*([(provider, chosen)] if provider else []), providers.CPU]
    )
    if provider and session.get_providers()[0] != provider:
        raise EngineUnavailable(f"onnxruntime cannot use {provider} and fell back to the CPU")
    names = [given.name for given in session.get_inputs()]

    def run(*batch: npt.NDArray[Any]) -> Outputs:
        given = dict(zip(names, batch, strict=True))
        return tuple(_plain(out) for out in session.run(None, given))

    return run
