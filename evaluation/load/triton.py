"""Triton with a reader that sleeps: its configurations, and the model of its Python backend.

A request whose own timeout has passed is rejected; it counts the queue alone, so the client leaves
the time of two batches. The two instances share one resource, so that one reads at a time: with one
instance and a queue policy full batches were at times read up to 0.5 s late.
"""

from pathlib import Path

MODEL, MARGIN_S = "reader", 0.13
PACKAGE, LIMITED = "nvidia-pytriton", "Triton"
MODES = {
    LIMITED: """dynamic_batching { max_queue_delay_microseconds: 5000, priority_levels: 2,
  default_priority_level: 2, default_queue_policy { timeout_action: REJECT,
  allow_timeout_override: true, max_queue_size: 48 } }
instance_group { kind: KIND_CPU, count: 2, rate_limiter { resources { name: "reader", count: 1 } } }
""",
    "Triton, batching alone": """dynamic_batching { max_queue_delay_microseconds: 5000 }
instance_group { kind: KIND_CPU, count: 1 }""",
}
LOCAL = ["--grpc-address=127.0.0.1", "--allow-http=false", "--allow-metrics=false"]
RATE = ["--rate-limit=execution_count", "--rate-limit-resource=reader:1"]
CONFIG = """backend: "python" max_batch_size: 8
input { name: "ROI", data_type: TYPE_UINT8, dims: [48, 48, 48] }
output { name: "PROBABILITY", data_type: TYPE_FP64, dims: [1] }
"""
READER = """import time, numpy as np
import triton_python_backend_utils as triton
class TritonPythonModel:
    def execute(self, requests):
        counts = [triton.get_input_tensor_by_name(one, "ROI").shape()[0] for one in requests]
        time.sleep((FIXED + EACH * int(sum(counts))) / 1e3)
        halves = (triton.Tensor("PROBABILITY", np.full((int(n), 1), 0.5)) for n in counts)
        return [triton.InferenceResponse([half]) for half in halves]
"""
FIND = """import json, os, sys, sysconfig, pytriton, importlib.metadata as metadata
print(json.dumps({"server": os.path.join(os.path.dirname(pytriton.__file__), "tritonserver"),
    "packages": sysconfig.get_path("purelib"), "libraries": sysconfig.get_config_var("LIBDIR"),
    "python": "%d.%d" % sys.version_info[:2], "version": metadata.version("nvidia-pytriton")}))"""


def command(
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
    reader = READER.replace("FIXED", str(fixed)).replace("EACH", str(each))
    (model / "1" / "model.py").write_text(reader)
    (model / "config.pbtxt").write_text(CONFIG + MODES[mode])
    line = [str(server / "bin" / "tritonserver"), *LOCAL, f"--model-repository={model.parent}"]
    line += [f"--backend-directory={backend.parent}", f"--grpc-port={port}"]
    line += RATE if mode == LIMITED else []
    # otherwise the backend loads the system's libpython, perhaps an older one, for these packages
    return line, {"LD_LIBRARY_PATH": found["libraries"], "PYTHONPATH": found["packages"]}
