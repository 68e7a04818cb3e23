"""INT4 weights laid out as INT8 when a file is loaded: the small file at INT8's speed.

Engines unpack INT4 into a slower kernel. Each of its sixteen levels is a level of INT8 too, so
the same numbers stand in one byte each, and the INT8 kernels run. Outputs are equal up to the
order of sums.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from models.runtime.errors import DamagedArtifact


def expanded(content: bytes) -> bytes:
    """An ONNX file without INT4 tensors that computes the same; the same bytes if it has none.

    Raises:
        DamagedArtifact: the content is no ONNX file.
    """
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's decode errors have no public base
        raise DamagedArtifact(f"no ONNX file: {error}") from error
    small = [t for t in model.graph.initializer if t.data_type == TensorProto.INT4]
    if not small:
        return content
    for tensor in small:
        levels = numpy_helper.to_array(tensor).astype(np.int8)
        tensor.CopyFrom(numpy_helper.from_array(levels, tensor.name))
    return model.SerializeToString()
