"""One way to run a network, in a process of its own: ``python -m models.probe.child JSON``.

It prints a line of JSON for each line on standard input: the first when the network is loaded and
has read the sample, the others with time and peak memory. A crash ends this process and no other.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from models.runtime.artifacts import Artifact, find
from models.runtime.choice import Way, cut_off, sample
from models.runtime.engines import Runner, start
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
    except ModelError as error:
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
    if way.stages == 1:
        return start(way.engine, artifact.content(), way.threads, half=way.half, fused=way.fused)
    return open_staged(
        artifact.name, way.stages, engine=way.engine, threads=way.threads,
        folder=artifact.path.parent,
    ).session.run  # fmt: skip


if __name__ == "__main__":
    main()
