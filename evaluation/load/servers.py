"""Other servers with the reader that sleeps: Triton and Ray Serve, each in its own environment.

Each is started with an interpreter that has it installed, and speaks the Open Inference Protocol
over gRPC, one ROI a request. Their settings for batches, deadlines and overload are near the best
of those that were tried at twice the capacity, and are part of the result.

Triton rejects a request whose own timeout has passed; it counts the queue alone, so the client
leaves the time of two batches. Its two instances share one resource, so that one reads at a time:
with one instance and a queue policy full batches were at times read up to 0.5 s late.
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
from evaluation.load.services import Service, services
from evaluation.sleeping_cloud import program
from evaluation.world import START_S, free_ports, running
from protos import inference_pb2 as pb
from protos.inference_pb2_grpc import GRPCInferenceServiceStub

STREAMS, REQUESTS = "Overread, a stream a study", "Overread, a request an ROI"
MODEL, MARGIN_S = "reader", 0.13
PYTRITON, LIMITED = "nvidia-pytriton", "Triton"
TRITONS = {
    LIMITED: """dynamic_batching { max_queue_delay_microseconds: 5000, priority_levels: 2,
  default_priority_level: 2, default_queue_policy { timeout_action: REJECT,
  allow_timeout_override: true, max_queue_size: 48 } }
instance_group { kind: KIND_CPU, count: 2, rate_limiter { resources { name: "reader", count: 1 } } }
""",
    "Triton, batching alone": """dynamic_batching { max_queue_delay_microseconds: 5000 }
instance_group { kind: KIND_CPU, count: 1 }""",
}
TRITON_LOCAL = ["--grpc-address=127.0.0.1", "--allow-http=false", "--allow-metrics=false"]
TRITON_RATE = ["--rate-limit=execution_count", "--rate-limit-resource=reader:1"]
TRITON_CONFIG = """backend: "python" max_batch_size: 8
input { name: "ROI", data_type: TYPE_UINT8, dims: [48, 48, 48] }
output { name: "PROBABILITY", data_type: TYPE_FP64, dims: [1] }
"""
TRITON_READER = """import time, numpy as np
import triton_python_backend_utils as triton
class TritonPythonModel:
    def execute(self, requests):
        counts = [triton.get_input_tensor_by_name(one, "ROI").shape()[0] for one in requests]
        time.sleep((FIXED + EACH * int(sum(counts))) / 1e3)
        halves = (triton.Tensor("PROBABILITY", np.full((int(n), 1), 0.5)) for n in counts)
        return [triton.InferenceResponse([half]) for half in halves]
"""
FIND_TRITON = """import json, os, sys, sysconfig, pytriton, importlib.metadata as metadata
print(json.dumps({"server": os.path.join(os.path.dirname(pytriton.__file__), "tritonserver"),
    "packages": sysconfig.get_path("purelib"), "libraries": sysconfig.get_config_var("LIBDIR"),
    "python": "%d.%d" % sys.version_info[:2], "version": metadata.version("nvidia-pytriton")}))"""

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
SETTINGS = {**TRITONS, RAY: {**RAY_SETTINGS, "environment": RAY_ENVIRONMENT}}


def described(python: Path, find: str, package: str) -> dict[str, str]:
    """Return what the program ``find`` prints as JSON, run by an interpreter."""
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


def triton_command(
    found: dict[str, str], folder: Path, mode: str, times_ms: tuple[float, float], port: int
) -> tuple[list[str], dict[str, str]]:
    """Write the model repository; return the command and its environment."""
    server, backend = Path(found["server"]), folder / "backends" / "python"
    model, (fixed, each) = folder / "models" / MODEL, times_ms
    stub = server / "python_backend_stubs" / found["python"] / "triton_python_backend_stub"
    for one in (backend, model / "1"):
        one.mkdir(parents=True)
    for part in (stub, *(server / "backends" / "python").iterdir()):
        (backend / part.name).symlink_to(part)  # a copy would not find its libraries
    reader = TRITON_READER.replace("FIXED", str(fixed)).replace("EACH", str(each))
    (model / "1" / "model.py").write_text(reader)
    (model / "config.pbtxt").write_text(TRITON_CONFIG + TRITONS[mode])
    line = [str(server / "bin" / "tritonserver"), *TRITON_LOCAL, f"--grpc-port={port}"]
    line += [f"--model-repository={model.parent}", f"--backend-directory={backend.parent}"]
    line += TRITON_RATE if mode == LIMITED else []
    # otherwise the backend loads the system's libpython, perhaps an older one, for these packages
    return line, {"LD_LIBRARY_PATH": found["libraries"], "PYTHONPATH": found["packages"]}


@contextmanager
def contenders(
    triton_python: Path | None, ray_python: Path | None, times_ms: tuple[float, float]
) -> Iterator[tuple[list[Service], dict[str, str]]]:
    """Run the cloud and the servers whose interpreters are given; yield them and their versions.

    ``times_ms`` are those of the reader for a batch and for each ROI.
    """
    versions = dict[str, str]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overread-servers-")))
        asked = f"127.0.0.1:{free_ports(1)[0]}"
        modes = {STREAMS: {"inference_address": asked}}
        (ours,) = stack.enter_context(services(modes, program(*times_ms)))
        started = [ours, Service(REQUESTS, asked, ours.clouds, "sleeping")]

        def start(
            mode: str, line: list[str], environment: dict[str, str], port: int, margin_s: float
        ) -> None:
            log = folder / f"{port}.log"
            process = stack.enter_context(running(mode, line, log, environment=environment))
            process.wait_until(lambda: _serves(f"127.0.0.1:{port}"), "serve", START_S)
            started.append(Service(mode, f"127.0.0.1:{port}", (), MODEL, margin_s))

        if triton_python is not None:
            found = described(triton_python, FIND_TRITON, PYTRITON)
            versions[PYTRITON] = found["version"]
            for mode in TRITONS:
                (port,) = free_ports(1)
                line, environment = triton_command(found, folder / mode, mode, times_ms, port)
                margin_s = MARGIN_S if mode == LIMITED else 0.0
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
