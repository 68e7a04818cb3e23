"""The networks: training, export, and the runtime that reads with them."""

import os
import sys
from typing import Any, cast

# Both inference engines report their use to their makers unless this is set before they are
# imported. Nothing may leave a hospital's machine but ROIs to its own cloud.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # since 1.29
cast(dict[str, Any], sys.modules)["openvino_telemetry"] = None
