"""Ray Serve with a reader that sleeps, behind the Open Inference Protocol: for a comparison.

``PYTHON evaluation/load/ray_service.py JSON`` serves until SIGTERM. PYTHON is an interpreter with
``ray[serve-grpc]``, and the repository is in PYTHONPATH: of it only the generated messages of the
protocol are used. JSON has the settings of `evaluation.load.peers.RAY_SETTINGS`, ``fixed_ms``,
``each_ms``, ``port``, and ``ready_file``, which is made when the service is ready.
"""

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.config import gRPCOptions

from protos import inference_pb2 as pb

STUBS = "protos.inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"


def reader(settings: dict[str, Any]) -> Any:
    """Return the application: one reader, which reads one batch at a time."""
    fixed_s, each_s = settings["fixed_ms"] / 1e3, settings["each_ms"] / 1e3

    async def read(_reader: object, rois: list[Any]) -> list[Any]:
        # Ray Serve takes requests meanwhile, in another thread
        time.sleep(fixed_s + len(rois) * each_s)
        return [np.full((1, 1), 0.5) for _ in rois]

    batched: Any = serve.batch(
        max_batch_size=settings["max_batch_size"],
        batch_wait_timeout_s=settings["batch_wait_timeout_s"],
    )(read)
    deployment: Any = serve.deployment(
        num_replicas=1,
        max_ongoing_requests=settings["max_ongoing_requests"],
        max_queued_requests=settings["max_queued_requests"],
    )

    class Reader:
        read = batched  # Ray Serve looks for a method of the function's own name

        async def ModelInfer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:  # noqa: N802 - named by the protocol
            """Answer with the probability of the request's one ROI."""
            shape = tuple(request.inputs[0].shape)
            roi = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(shape)
            answer = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            answer.outputs.add(name="PROBABILITY", datatype="FP64", shape=(1, 1))
            answer.raw_output_contents.append((await self.read(roi)).tobytes())
            return answer

    return deployment(Reader).bind()


def main() -> None:
    """Serve until SIGTERM."""
    settings = json.loads(sys.argv[1])
    ended = threading.Event()
    ray.init(include_dashboard=False, log_to_driver=False)
    signal.signal(signal.SIGTERM, lambda *_: ended.set())  # after Ray has set its own
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": settings["http_port"]},
        grpc_options=gRPCOptions(
            port=settings["port"],
            grpc_servicer_functions=[STUBS],
            request_timeout_s=settings["request_timeout_s"],
        ),
    )
    serve.run(reader(settings), name="reader", route_prefix="/")
    Path(settings["ready_file"]).touch()
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
