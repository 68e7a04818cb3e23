"""Other servers with the reader that sleeps: Triton and Ray Serve, each in its own environment.

Each is started with an interpreter that has it installed, and speaks the Open Inference Protocol
over gRPC, one ROI a request. Their settings for batches, deadlines and overload are near the best
of those that were tried at twice the capacity, and are part of the result.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc

from evaluation.errors import ServiceFailed
from evaluation.load import triton
from evaluation.load.services import Service, services
from evaluation.sleeping_cloud import program
from evaluation.world import START_S, free_ports, running
from protos import inference_pb2 as pb
from protos.inference_pb2_grpc import GRPCInferenceServiceStub

STREAMS, REQUESTS = "Overread, a stream a study", "Overread, a request an ROI"
RAY = "Ray Serve"
FIND_RAY = "import json, ray, ray.serve; print(json.dumps({'version': ray.__version__}))"
RAY_SETTINGS: Mapping[str, Any] = {
    "batch": {"max_batch_size": 8, "batch_wait_timeout_s": 0.02},
    "deployment": {"max_ongoing_requests": 40, "max_queued_requests": 8},
    "grpc": {"request_timeout_s": 2.0},
}
RAY_ENVIRONMENT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "1",
    "RAY_worker_niceness": "0",  # as the others have
}
SETTINGS = {**triton.MODES, RAY: {**RAY_SETTINGS, "environment": RAY_ENVIRONMENT}}


def described(python: Path, find: str, package: str) -> dict[str, str]:
    """Return what the program ``find`` prints as JSON, run by an interpreter.

    Raises:
        ServiceFailed: the interpreter cannot be run, or lacks ``package``.
    """
    try:
        done = subprocess.run(
            [python, "-c", find], capture_output=True, text=True, timeout=START_S, check=False
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
def contenders(
    triton_python: Path | None, ray_python: Path | None, times_ms: tuple[float, float]
) -> Iterator[tuple[list[Service], dict[str, str]]]:
    """Run the cloud and the servers whose interpreters are given; yield them and their versions.

    ``times_ms`` are those of the reader for a batch and for each ROI.

    Raises:
        ServiceFailed: one cannot be started.
    """
    versions = dict[str, str]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overread-servers-")))
        (ours,) = stack.enter_context(services({STREAMS: {}}, program(*times_ms)))
        started = [ours, Service(REQUESTS, ours.address, ours.clouds, "sleeping")]

        def start(
            mode: str, line: list[str], environment: dict[str, str], port: int, margin_s: float
        ) -> None:
            log = folder / f"{port}.log"
            process = stack.enter_context(running(mode, line, log, environment=environment))
            process.wait_until(lambda: _serves(f"127.0.0.1:{port}"), "serve", START_S)
            started.append(Service(mode, f"127.0.0.1:{port}", (), triton.MODEL, margin_s))

        if triton_python is not None:
            found = described(triton_python, triton.FIND, triton.PACKAGE)
            versions[triton.PACKAGE] = found["version"]
            for mode in triton.MODES:
                (port,) = free_ports(1)
                line, environment = triton.command(found, folder / mode, mode, times_ms, port)
                margin_s = triton.MARGIN_S if mode == triton.LIMITED else 0.0
                start(mode, line, environment, port, margin_s)
        if ray_python is not None:
            versions["ray"] = described(ray_python, FIND_RAY, "ray[serve]")["version"]
            port, http_port = free_ports(2)
            given = {
                **RAY_SETTINGS,
                "grpc": {**RAY_SETTINGS["grpc"], "port": port},
                "http": {"host": "127.0.0.1", "port": http_port},
                **dict(zip(("fixed_ms", "each_ms"), times_ms, strict=True)),
            }
            here = Path(__file__)
            line = [str(ray_python), str(here.with_name("ray_serve.py")), json.dumps(given)]
            environment = {"PYTHONPATH": str(here.parents[2]), **RAY_ENVIRONMENT}
            start(RAY, line, environment, port, 0.0)
        yield started, versions


def _serves(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            request = pb.ServerReadyRequest()
            ready = GRPCInferenceServiceStub(channel).ServerReady(request, timeout=1.0)
        except grpc.RpcError:
            return False
    return bool(ready.ready)
