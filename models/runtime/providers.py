"""Accelerators beside the CPU: which package brings the engine, and with which options it runs.

The engines answer as exactly as FP32 unless a model allows less (`Artifact.half`): a TF32 or FP16
mode that is on by default is switched off. `models.runtime.choice` measures what is there.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CPU, NO_DEVICE = "CPUExecutionProvider", "AzureExecutionProvider"
PACKAGES = (
    "openvino", "onnxruntime", "onnxruntime-gpu", "onnxruntime-migraphx", "onnxruntime-cann",
    "onnxruntime-qnn",
)  # fmt: skip
"""The packages of the engines; those of onnxruntime exclude one another."""

_TENSORRT = os.path.expanduser("~/.cache/overread/tensorrt")  # unchanged without a home


@dataclass(frozen=True)
class Accelerator:
    """A kind of device, and how an engine uses it.

    Attributes:
        engine: ``onnxruntime:PROVIDER`` or ``openvino:DEVICE``, without a number.
        device: its maker and kind.
        package: what to install in place of, or beside, the engine's package for the CPU.
        precision: in which number formats the layers of FP32 and INT8 networks run there.
        options: of every network; those that fuse layers are among them.
        int8: more options of a network with quantised layers.
        half: more options of a network whose float layers may have 16 bits.
        fusions: the layers that become one step.
    """

    engine: str
    device: str
    package: str
    precision: str
    fusions: str
    options: Mapping[str, str] = field(default_factory=dict)
    int8: Mapping[str, str] = field(default_factory=dict)
    half: Mapping[str, str] = field(default_factory=dict)


ACCELERATORS = (
    Accelerator(
        "onnxruntime:TensorrtExecutionProvider", "NVIDIA GPU, TensorRT",
        "onnxruntime-gpu and tensorrt, in place of onnxruntime",
        "INT8 as the file says, other layers FP32, FP16 where allowed",
        "all that TensorRT finds; engines are kept",
        {"trt_engine_cache_enable": "1", "trt_engine_cache_path": _TENSORRT},
        {"trt_int8_enable": "1"}, {"trt_fp16_enable": "1"},
    ),
    Accelerator(
        "onnxruntime:CUDAExecutionProvider", "NVIDIA GPU, CUDA",
        "onnxruntime-gpu, in place of onnxruntime",
        "FP32 without TF32; INT8 is computed as float, so FP32 is as fast", "convolution and bias",
        {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE", "fuse_conv_bias": "1"},
        half={"use_tf32": "1"},
    ),
    Accelerator(
        "onnxruntime:MIGraphXExecutionProvider", "AMD GPU, MIGraphX",
        "onnxruntime-migraphx, in place of onnxruntime",
        "INT8 as the file says, other layers FP32, FP16 where allowed", "all that MIGraphX finds",
        half={"migraphx_fp16_enable": "1"},
    ),
    Accelerator(
        "onnxruntime:CANNExecutionProvider", "Huawei Ascend, CANN",
        "onnxruntime-cann, in place of onnxruntime",
        "as the file says, FP16 where allowed", "the whole graph in one engine",
        {"enable_cann_graph": "1", "precision_mode": "must_keep_origin_dtype",
         "op_select_impl_mode": "high_precision"},
        half={"precision_mode": "allow_fp32_to_fp16"},
    ),
    Accelerator(
        "onnxruntime:QNNExecutionProvider", "Qualcomm NPU, QNN",
        "onnxruntime-qnn below version 2, in place of onnxruntime",
        "INT8 on the NPU, other layers FP32 on the CPU, FP16 on the NPU where allowed",
        "all that the longest preparation finds",
        {"backend_path": "libQnnHtp.so", "htp_performance_mode": "burst",
         "htp_graph_finalization_optimization_mode": "3", "enable_htp_fp16_precision": "0"},
        half={"enable_htp_fp16_precision": "1"},
    ),
    Accelerator(
        "onnxruntime:CoreMLExecutionProvider", "Apple GPU and Neural Engine, Core ML",
        "onnxruntime for macOS", "FP32 on the GPU, FP16 on the Neural Engine where allowed",
        "all that Core ML finds",
        {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndGPU"},
        half={"MLComputeUnits": "ALL"},
    ),
    Accelerator(
        "openvino:GPU", "Intel GPU", "openvino, and the driver intel-opencl-icd",
        "INT8 as the file says, other layers FP32, FP16 where allowed", "all that openvino finds",
        {"INFERENCE_PRECISION_HINT": "f32"}, half={"INFERENCE_PRECISION_HINT": "f16"},
    ),
    Accelerator(
        "openvino:NPU", "Intel NPU", "openvino, and the driver intel-driver-compiler-npu",
        "INT8 as the file says, other layers FP16", "all that openvino finds",
        {"INFERENCE_PRECISION_HINT": "f16"},
    ),
)  # fmt: skip
"""By preference. Names and options are those of the engines' documentation; only the CPU has been
measured by us, so `models.runtime.choice` holds each to the reference before it is used."""


def options_of(engine: str, *, int8: bool, half: bool) -> dict[str, str]:
    """Return the options of an engine such as ``openvino:GPU.0``; none if the table lacks it."""
    family, _, device = engine.partition(":")
    plain = f"{family}:{device.replace('.', ':').partition(':')[0]}"
    for one in ACCELERATORS:
        if one.engine == plain:
            return {**one.options, **(one.int8 if int8 else {}), **(one.half if half else {})}
    return {}


def available_providers() -> list[str]:
    """Return onnxruntime's providers that use a device of their own, in its order."""
    import onnxruntime  # here, since an engine that is chosen already does without

    return [p for p in onnxruntime.get_available_providers() if p not in (CPU, NO_DEVICE)]


def absent(engines: Sequence[str]) -> list[Accelerator]:
    """Return the accelerators for which ``engines`` has none."""
    return [a for a in ACCELERATORS if not any(one.startswith(a.engine) for one in engines)]
