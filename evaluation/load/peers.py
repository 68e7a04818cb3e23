"""Other servers with the reader that sleeps: Triton and Ray Serve, each in its own environment.

Each is started with an interpreter that has it installed, and speaks the Open Inference Protocol
over gRPC. Their settings for batches, deadlines and overload are near the best of those that were
tried at twice the capacity, and are part of the result.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from evaluation.common.processes import START_S, Process, free_ports
from evaluation.errors import ServiceFailed
from evaluation.load.inference_edges import ROUTINE_LEVEL
from protos import inference_pb2 as pb
from protos.inference_pb2_grpc import GRPCInferenceServiceStub

MODEL = "reader"
"""The name of the model on the servers."""

ROI_SHAPE = (48, 48, 48)

QUEUE = 48
"""Requests that may wait. At full batches this is less work than the shortest budget has time."""

TRITON_SETTINGS: Mapping[str, Any] = {
    "max_batch_size": 8,
    "dynamic_batching": {
        "max_queue_delay_microseconds": 5000,
        "priority_levels": ROUTINE_LEVEL,
        "default_priority_level": ROUTINE_LEVEL,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "allow_timeout_override": True,
            "max_queue_size": QUEUE,
        },
    },
    "instance_group": {
        "kind": "KIND_CPU",
        "count": 2,
        "rate_limiter": {"resources": [{"name": "reader", "count": 1}]},
    },
    "options": ["--rate-limit=execution_count", "--rate-limit-resource=reader:1"],
    "timeout_margin_s": 0.13,
}
"""Priorities, a short queue, and rejection of requests whose own timeout has passed.

Triton's timeout is that of the queue: the client leaves the time of two batches. The two instances
share one resource, so that one reads at a time. With one instance and a queue policy, full batches
were at times read up to 0.5 s late.
"""

TRITON_PLAIN_SETTINGS: Mapping[str, Any] = {
    "max_batch_size": 8,
    "dynamic_batching": {"max_queue_delay_microseconds": 5000},
    "instance_group": {"kind": "KIND_CPU", "count": 1},
    "options": [],
    "timeout_margin_s": 0.0,
}
"""Dynamic batching alone: first come, first served, and no request is rejected."""

RAY_SETTINGS: Mapping[str, Any] = {
    "max_batch_size": 8,
    "batch_wait_timeout_s": 0.02,
    "max_ongoing_requests": 40,
    "max_queued_requests": QUEUE - 40,
    "request_timeout_s": 2.0,
    "environment": {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "1",
        "RAY_worker_niceness": "0",
    },
}
"""Its processes have the same niceness as the others, and most requests that wait are ongoing.

Batches are formed of ongoing requests alone, and are closed when the wait has passed, though the
reader is busy. Requests come through Serve's proxy.
"""

_CONSTANTS = ("TYPE_", "KIND_", "REJECT")
"""Starts of texts that are names of constants in Triton's configuration."""

_FIND_TRITON = """
import importlib.metadata, json, pathlib, sys, sysconfig, pytriton
print(json.dumps({
    "server": str(pathlib.Path(pytriton.__file__).parent / "tritonserver"),
    "packages": sysconfig.get_path("purelib"),
    "libraries": sysconfig.get_config_var("LIBDIR"),
    "python": "%d.%d" % sys.version_info[:2],
    "version": importlib.metadata.version("nvidia-pytriton"),
}))
"""
_FIND_RAY = "import json, ray, ray.serve; print(json.dumps({'version': ray.__version__}))"


def described(python: Path, program: str, package: str) -> dict[str, str]:
    """Return what ``program`` prints as JSON, run by an interpreter.

    Raises:
        ServiceFailed: the interpreter cannot be run, or lacks ``package``.
    """
    try:
        done = subprocess.run(
            [python, "-c", program], capture_output=True, text=True, timeout=START_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceFailed(f"{python} cannot be run: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ServiceFailed(
            f"{python} lacks {package}: {last}\nWhat to do: make its environment, as"
            " docs/budget.md has it"
        )
    found: dict[str, str] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@contextmanager
def triton(
    python: Path, folder: Path, settings: Mapping[str, Any], times_ms: tuple[float, float]
) -> Iterator[str]:
    """Run Triton with the reader that sleeps for the time of the context; yield its address.

    ``python`` has ``nvidia-pytriton``, of which the server itself and its Python backend are used.
    ``times_ms`` are those of a batch and of each ROI.

    Raises:
        ServiceFailed: it lacks Triton, or Triton ended or did not serve.
    """
    found = described(python, _FIND_TRITON, "nvidia-pytriton")
    server = Path(found["server"])
    backend, model = folder / "backends" / "python", folder / "models" / MODEL
    stub = server / "python_backend_stubs" / found["python"] / "triton_python_backend_stub"
    backend.mkdir(parents=True)
    for part in (stub, *(server / "backends" / "python").iterdir()):
        (backend / part.name).symlink_to(part)  # a copy would not find its libraries
    (model / "1").mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "triton_reader.py", model / "1" / "model.py")
    (model / "config.pbtxt").write_text(triton_config(settings, times_ms))
    (port,) = free_ports(1)
    command = [str(server / "bin" / "tritonserver"), f"--model-repository={model.parent}"]
    command += [f"--backend-directory={backend.parent}", "--grpc-address=127.0.0.1"]
    command += [f"--grpc-port={port}", "--allow-http=false", "--allow-metrics=false"]
    command += settings["options"]
    # Otherwise the backend loads the system's libpython of the same minor version, which may be
    # an older one than the interpreter's, with the modules of the interpreter.
    environment = {"LD_LIBRARY_PATH": found["libraries"], "PYTHONPATH": found["packages"]}
    process = Process("Triton", command, folder / "log", isolated=True, environment=environment)
    with _stopped_at_end(process):
        address = f"127.0.0.1:{port}"
        process.wait_until(lambda: _serves(address), "serve", START_S)
        yield address


def triton_config(settings: Mapping[str, Any], times_ms: tuple[float, float]) -> str:
    """Return a model's configuration for Triton, in the text format of protocol buffers."""
    config = {
        "backend": "python",
        "max_batch_size": settings["max_batch_size"],
        "input": [{"name": "ROI", "data_type": "TYPE_UINT8", "dims": list(ROI_SHAPE)}],
        "output": [{"name": "PROBABILITY", "data_type": "TYPE_FP64", "dims": [1]}],
        "instance_group": [settings["instance_group"]],
        "dynamic_batching": settings["dynamic_batching"],
        "parameters": [
            {"key": name, "value": {"string_value": str(value)}}
            for name, value in zip(("fixed_ms", "each_ms"), times_ms, strict=True)
        ],
    }
    return "\n".join(f"{name}: {_text(value)}" for name, value in config.items())


def _text(value: Any) -> str:
    """Return a value in the text format; constants are not quoted."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_text(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, str) and value.startswith(_CONSTANTS):
        return value
    return json.dumps(value)


@contextmanager
def ray_serve(
    python: Path, folder: Path, settings: Mapping[str, Any], times_ms: tuple[float, float]
) -> Iterator[str]:
    """Run Ray Serve with the reader that sleeps for the time of the context; yield its address.

    Raises:
        ServiceFailed: ``python`` lacks Ray Serve, or it ended or did not serve.
    """
    described(python, _FIND_RAY, "ray[serve]")
    folder.mkdir()
    port, http_port = free_ports(2)
    ready = folder / "ready"
    given = {
        **{name: value for name, value in settings.items() if name != "environment"},
        **dict(zip(("fixed_ms", "each_ms"), times_ms, strict=True)),
        "port": port,
        "http_port": http_port,
        "ready_file": str(ready),
    }
    here = Path(__file__)
    command = [str(python), str(here.parent / "ray_service.py"), json.dumps(given)]
    environment = {"PYTHONPATH": str(here.parents[2]), **settings["environment"]}
    process = Process("Ray Serve", command, folder / "log", isolated=True, environment=environment)
    with _stopped_at_end(process):
        process.wait_until(ready.is_file, "serve", START_S)
        yield f"127.0.0.1:{port}"


def versions(triton_python: Path | None, ray_python: Path | None) -> dict[str, str]:
    """Return the versions of the servers whose interpreters are given; raise as `described`."""
    found = {}
    if triton_python is not None:
        name = "nvidia-pytriton"
        found[name] = described(triton_python, _FIND_TRITON, name)["version"]
    if ray_python is not None:
        found["ray"] = described(ray_python, _FIND_RAY, "ray[serve]")["version"]
    return found


@contextmanager
def _stopped_at_end(process: Process) -> Iterator[None]:
    try:
        yield
        process.require_alive()
    finally:
        process.stop()


def _serves(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            ready = GRPCInferenceServiceStub(channel).ServerReady(
                pb.ServerReadyRequest(), timeout=1.0
            )
        except grpc.RpcError:
            return False
    return bool(ready.ready)
