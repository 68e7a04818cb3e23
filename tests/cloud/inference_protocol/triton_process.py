"""Calls a service with tritonclient as it is published: a line of JSON in, a line of JSON out.

It runs in a process of its own, since tritonclient and our stubs both register the protocol's
messages. Arguments: ``grpc`` or ``http``, HOST:PORT, and authority, key and certificate for TLS.
"""

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

KIND, ADDRESS, *FILES = sys.argv[1:]
CLIENT: Any = tritonclient.grpc if KIND == "grpc" else tritonclient.http


def connect() -> Any:
    if KIND == "grpc":
        names = ("root_certificates", "private_key", "certificate_chain")
        return CLIENT.InferenceServerClient(
            ADDRESS, ssl=bool(FILES), **dict(zip(names, FILES, strict=False))
        )
    tls = dict(zip(("ca_certs", "keyfile", "certfile"), FILES, strict=False))
    return CLIENT.InferenceServerClient(
        ADDRESS, ssl=bool(FILES), ssl_options=tls, network_timeout=60.0
    )


def tensors(
    rois: Any, datatype: str = "UINT8", name: str = "ROI", binary: bool = True, **_: Any
) -> list[Any]:
    voxels = np.array(rois, {"UINT8": np.uint8, "FP32": np.float32}[datatype])
    given = CLIENT.InferInput(name, list(voxels.shape), datatype)
    given.set_data_from_numpy(voxels, **({} if KIND == "grpc" else {"binary_data": binary}))
    return [given]


def infer(client: Any, *, outputs: list[str] | None = None, **call: Any) -> dict[str, Any]:
    form = {} if KIND == "grpc" else {"binary_data": call.get("binary", True)}
    wanted = [CLIENT.InferRequestedOutput(one, **form) for one in outputs or ()] or None
    own = {k: v for k, v in call.items() if k not in ("rois", "datatype", "name", "binary")}
    model = own.pop("model", "mean")
    return values_of(client.infer(model, tensors(**call), outputs=wanted, **own))


def values_of(answer: Any) -> dict[str, Any]:
    response = answer.get_response(**({"as_json": True} if KIND == "grpc" else {}))
    plain = np.vectorize(lambda one: one.decode() if isinstance(one, bytes) else one)
    arrays = {one["name"]: answer.as_numpy(one["name"]) for one in response["outputs"]}
    return {
        "id": response.get("id", ""),
        "model": response["model_name"],
        "version": response["model_version"],
        "outputs": {
            name: (plain(array) if array.dtype == object else array).tolist()
            for name, array in arrays.items()
        },
    }


def stream(client: Any, *, calls: list[Any]) -> list[Any]:
    """Send all on one stream, and return what came: values, or the words of an error."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for rois in calls:
        client.async_stream_infer("mean", tensors(rois))
    came = [answers.get(timeout=30) for _ in calls]
    client.stop_stream()
    return [str(error.message()) if error else values_of(result) for result, error in came]


def call(client: Any, name: str, arguments: dict[str, Any]) -> Any:
    if name in ("infer", "stream"):
        return globals()[name](client, **arguments)
    plain = {"as_json": True} if KIND == "grpc" and name.startswith("get_") else {}
    return getattr(client, name)(**arguments, **plain)


def main() -> None:
    print(json.dumps({"result": "ready"}), flush=True)
    client = connect()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            said = {"result": call(client, name, arguments)}
        except InferenceServerException as error:
            said = {"error": error.message(), "status": error.status()}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
