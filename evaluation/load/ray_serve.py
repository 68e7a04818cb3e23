"""Ray Serve with a reader that sleeps, behind the Open Inference Protocol.

``PYTHON evaluation/load/ray_serve.py JSON`` serves until SIGTERM. PYTHON is an interpreter with
``ray[serve]``, and the repository is in PYTHONPATH: of it only the generated messages are used.
JSON has the settings of `evaluation.load.servers`. Batches are formed of ongoing requests alone,
and are closed when the wait has passed, though the reader is busy.
"""

import json
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.config import gRPCOptions

from protos import inference_pb2 as pb

STUBS = "protos.inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"
given: dict[str, Any] = json.loads(sys.argv[1])


@serve.deployment(num_replicas=1, **given["deployment"])
class Reader:
    """Reads one batch at a time; Ray Serve takes requests meanwhile, in another thread."""

    @serve.batch(**given["batch"])  # type: ignore[untyped-decorator] # Ray is not installed here
    async def read(self, rois: list[Any]) -> list[Any]:
        """Sleep for a batch."""
        time.sleep((given["fixed_ms"] + len(rois) * given["each_ms"]) / 1e3)
        return [np.full((1, 1), 0.5) for _ in rois]

    async def ModelInfer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:  # noqa: N802 - named by the protocol
        """Answer with the probability of the request's one ROI."""
        shape = tuple(request.inputs[0].shape)
        roi = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(shape)
        answer = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        answer.outputs.add(name="PROBABILITY", datatype="FP64", shape=(1, 1))
        answer.raw_output_contents.append((await self.read(roi)).tobytes())
        return answer

    async def ServerReady(self, _request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:  # noqa: N802 - named by the protocol
        """Answer that it serves."""
        return pb.ServerReadyResponse(ready=True)


ended = threading.Event()
ray.init(include_dashboard=False, log_to_driver=False)
signal.signal(signal.SIGTERM, lambda *_: ended.set())  # after Ray has set its own
grpc = gRPCOptions(grpc_servicer_functions=[STUBS], **given["grpc"])
serve.start(proxy_location="HeadOnly", http_options=given["http"], grpc_options=grpc)
app = Reader.bind()  # type: ignore[attr-defined] # the decorator adds it
serve.run(app, name="reader", route_prefix="/")
ended.wait()
serve.shutdown()
ray.shutdown()
