"""One way to run a network, in a process of its own: ``python -m models.probe.child JSON``.

It prints a line of JSON for each line on standard input: the first when the network is loaded and
has read the sample, the others with time and peak memory. A crash ends this process and no other.
"""

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from models.runtime.artifacts import Artifact, find
from models.runtime.choice import Way, cut_off, sample
from models.runtime.engines import Outputs, Runner, start
from models.runtime.errors import ModelError
from models.runtime.stages import open_staged
from process.memory import peak_bytes

BOX = (256, 224, 320)
"""Voxels of a lung box, ``(z, y, x)``; a hybrid reads the eight regions of the sample."""


def main() -> None:
    """Run the way that the argument describes."""
    name, folder, given, file = json.loads(sys.argv[1])
    artifact, way = find(name, Path(folder)), Way(**given)
    voxels = sample(artifact)
    try:
        run = _opened(artifact, way)
        answer = run(voxels)
    except (ModelError, ModuleNotFoundError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    np.savez(file, *answer)
    sys.stdin.readline()
    print(json.dumps({"overflow": cut_off(way.engine, artifact.content())}), flush=True)
    if artifact.kind == "screening":
        more = [(0, n - m) for n, m in zip((1, 1, *BOX), voxels.shape, strict=True)]
        voxels = np.pad(voxels, more, mode="wrap")
    for _ in sys.stdin:
        began = time.perf_counter()
        run(voxels)
        took_ms = 1e3 * (time.perf_counter() - began)
        print(json.dumps({"ms": took_ms, "peak_mb": peak_bytes() / 1e6}), flush=True)


def _opened(artifact: Artifact, way: Way) -> Runner:
    if way.engine in OTHERS:
        return OTHERS[way.engine](artifact, way.threads)
    if way.stages == 1:
        return start(way.engine, artifact.content(), way.threads, half=way.half, fused=way.fused)
    return open_staged(
        artifact.name, way.stages, engine=way.engine, threads=way.threads,
        folder=artifact.path.parent,
    ).session.run  # fmt: skip


def _torch(artifact: Artifact, threads: int) -> Runner:
    from models.training.runs import make_network

    return _of_module(make_network(artifact.kind, [artifact.path]), threads)


def _monai(_artifact: Artifact, threads: int) -> Runner:
    """Return MONAI's RetinaNet for nodules of LUNA16, with random weights."""
    from monai.apps.detection.networks import retinanet_network as retinanet
    from monai.networks.nets import resnet50

    body = resnet50(spatial_dims=3, n_input_channels=1, conv1_t_stride=(2, 2, 1), conv1_t_size=7)
    features = retinanet.resnet_fpn_feature_extractor(body, 3, False, [1, 2], None)
    return _of_module(retinanet.RetinaNet(3, 1, 3, features, [16, 16, 8]), threads)


def _of_module(network: Any, threads: int) -> Runner:
    import torch

    torch.set_num_threads(threads)
    network.eval()

    def run(voxels: Any) -> Outputs:
        with torch.inference_mode():
            found = network(torch.from_numpy(voxels).float() / 255)
        if isinstance(found, dict):  # RetinaNet's classes and boxes, of each level
            found = [level for levels in found.values() for level in levels]
        return tuple(one.numpy() for one in ([found] if torch.is_tensor(found) else found))

    return run


OTHERS = {"torch": _torch, "monai": _monai}
"""What runs networks for comparison only."""


def installed(name: str) -> bool:
    """Return whether one of `OTHERS` can run: torch runs our networks, which the checkout has."""
    return all(map(find_spec, ("torch", name))) and find_spec("models.training") is not None


if __name__ == "__main__":
    main()
