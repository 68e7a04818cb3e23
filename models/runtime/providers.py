"""Accelerators beside the CPU: which package brings the engine, and with which options it runs.

The engines answer as exactly as FP32 unless a model allows less (`Artifact.half`): a TF32 or FP16
mode that is on by default is switched off. `models.runtime.choice` measures what is there.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CPU, NO_DEVICE = "CPUExecutionProvider", "AzureExecutionProvider"
"""The providers of onnxruntime that use no device of their own."""

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
        precision: the number formats of float and quantised layers there.
        fusions: the layers that become one step.
        options: of every network; those that fuse layers are among them.
        int8: more options of a network with quantised layers.
        half: more options of a network whose float layers may have 16 bits.
    """

    engine: str
    device: str
    package: str
    precision: str
    fusions: str
    options: Mapping[str, str] = field(default_factory=dict)
    int8: Mapping[str, str] = field(default_factory=dict)
    half: Mapping[str, str] = field(default_factory=dict)


_USUAL = "INT8 as the file says, else FP32, FP16 where allowed"

ACCELERATORS = (
    Accelerator(
        "onnxruntime:TensorrtExecutionProvider", "NVIDIA GPU, TensorRT",
        "onnxruntime-gpu and tensorrt, in place of onnxruntime", _USUAL, "those of TensorRT",
        {"trt_engine_cache_enable": "1", "trt_engine_cache_path": _TENSORRT},
        {"trt_int8_enable": "1"}, {"trt_fp16_enable": "1"},
    ),
    Accelerator(
        "onnxruntime:CUDAExecutionProvider", "NVIDIA GPU, CUDA",
        "onnxruntime-gpu, in place of onnxruntime", "FP32, also for INT8; TF32 where allowed",
        "convolution and bias",
        {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE", "fuse_conv_bias": "1"},
        half={"use_tf32": "1"},
    ),
    Accelerator(
        "onnxruntime:MIGraphXExecutionProvider", "AMD GPU, MIGraphX",
        "onnxruntime-migraphx, in place of onnxruntime", _USUAL, "those of MIGraphX",
        half={"migraphx_fp16_enable": "1"},
    ),
    Accelerator(
        "onnxruntime:CANNExecutionProvider", "Huawei Ascend, CANN",
        "onnxruntime-cann, in place of onnxruntime", _USUAL, "the whole graph",
        {"enable_cann_graph": "1", "precision_mode": "must_keep_origin_dtype",
         "op_select_impl_mode": "high_precision"},
        half={"precision_mode": "allow_fp32_to_fp16"},
    ),
    Accelerator(
        "onnxruntime:QNNExecutionProvider", "Qualcomm NPU, QNN",
        "onnxruntime-qnn below version 2, in place of onnxruntime",
        "INT8, else FP32 on the CPU, FP16 where allowed", "those of the longest preparation",
        {"backend_path": "libQnnHtp.so", "htp_performance_mode": "burst",
         "htp_graph_finalization_optimization_mode": "3", "enable_htp_fp16_precision": "0"},
        half={"enable_htp_fp16_precision": "1"},
    ),
    Accelerator(
        "onnxruntime:CoreMLExecutionProvider", "Apple GPU and Neural Engine",
        "onnxruntime for macOS", "FP32 on the GPU, FP16 on the Neural Engine where allowed",
        "those of Core ML",
        {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndGPU"},
        half={"MLComputeUnits": "ALL"},
    ),
    Accelerator(
        "openvino:GPU", "Intel GPU", "openvino, and the driver intel-opencl-icd", _USUAL,
        "those of openvino", {"INFERENCE_PRECISION_HINT": "f32"},
        half={"INFERENCE_PRECISION_HINT": "f16"},
    ),
    Accelerator(
        "openvino:NPU", "Intel NPU", "openvino, and the driver intel-driver-compiler-npu",
        "INT8, else FP16", "those of openvino", {"INFERENCE_PRECISION_HINT": "f16"},
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


def absent(engines: Sequence[str]) -> list[Accelerator]:
    """Return the accelerators for which ``engines`` has none."""
    return [a for a in ACCELERATORS if not any(one.startswith(a.engine) for one in engines)]
