"""The reader that sleeps, as a model of Triton's Python backend: it becomes ``1/model.py``.

It imports nothing of Overread. A batch of n ROIs takes the model's parameters ``fixed_ms`` +
``each_ms`` n. The probabilities are always one half.
"""

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    """The class that Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Take the times from the model's configuration."""
        given = json.loads(args["model_config"])["parameters"]
        self.fixed_s = float(given["fixed_ms"]["string_value"]) / 1e3
        self.each_s = float(given["each_ms"]["string_value"]) / 1e3

    def execute(self, requests: list[Any]) -> list[Any]:
        """Sleep once for a batch of requests, each of which has n ROIs; answer each."""
        shapes = [triton.get_input_tensor_by_name(one, "ROI").shape() for one in requests]
        time.sleep(self.fixed_s + self.each_s * sum(int(shape[0]) for shape in shapes))
        halves = [triton.Tensor("PROBABILITY", np.full((int(one[0]), 1), 0.5)) for one in shapes]
        return [triton.InferenceResponse([half]) for half in halves]
