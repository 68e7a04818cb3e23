"""The machine's processor, cores and engines."""

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from models.runtime.providers import CPU, NO_DEVICE, PACKAGES

with suppress(ImportError):  # without it, onnxruntime runs alone
    import openvino


LEFT = dict.fromkeys(("SSE41", "AVX", "AVX2", "AVX512_CORE"), "") | {"AVX2_VNNI": "avx_vnni"}
"""What ONEDNN_MAX_CPU_ISA, a limit of oneDNN's, leaves of VNNI, bfloat16 and AMX; else all."""


def cpu_name() -> str:
    """Return the processor's name and its instruction sets of low-precision kernels."""
    name, flags = _cpu()
    low_precision = ("amx_int8", "avx512_vnni", "avx512_bf16", "avx_vnni", "avx2")
    known = ", ".join(flag for flag in low_precision if flag in flags)
    if name:
        return f"{name} ({known or 'no vector extensions known'})"
    return platform.processor() or platform.machine()


def has_bf16() -> bool:
    """Return whether the processor has instructions for bfloat16."""
    return bool({"amx_bf16", "avx512_bf16"} & _cpu()[1])


def fast_bf16() -> bool:
    """Return whether the processor multiplies matrices of bfloat16 in hardware."""
    return "amx_bf16" in _cpu()[1]


def adds_in_16_bits() -> bool:
    """Return whether oneDNN may add two products of 8 bits in 16: on x86 without VNNI."""
    exact = {"avx512_vnni", "avx_vnni", "amx_int8"} & _cpu()[1]
    return platform.machine().lower() in ("x86_64", "amd64") and not exact


def has_openvino() -> bool:
    """Return whether the engine openvino is installed."""
    return "openvino" in globals()


def _cpu() -> tuple[str, set[str]]:
    """Return the processor's name and flags, where Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "", set()
    fields = {key.strip(): value for key, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    if (left := LEFT.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper())) is not None:
        flags = {one for one in flags if one == left or not one.endswith(("vnni", "16", "int8"))}
    return fields.get("model name", "").strip(), flags


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def engines() -> tuple[str, ...]:
    """Return every engine of this machine, accelerators first.

    ``openvino`` and ``onnxruntime`` run on the CPU; others are named
    ``onnxruntime:PROVIDER`` and ``openvino:DEVICE``.
    """
    import onnxruntime  # here, since an engine that is chosen already does without

    providers = (p for p in onnxruntime.get_available_providers() if p not in (CPU, NO_DEVICE))
    devices = openvino.Core().available_devices if has_openvino() else []
    return (
        *(f"onnxruntime:{provider}" for provider in providers),
        *(f"openvino:{device}" for device in devices if not device.startswith("CPU")),
        *(["openvino"] if has_openvino() else []),
        "onnxruntime",
    )


def engines_on(device: str) -> tuple[str, ...]:
    """Return the engines that run on a device, whether this machine has it or not.

    ``cpu`` is the processor, ``cuda`` or ``cuda:1`` an NVIDIA GPU, by its number; any other name
    is one of openvino's, such as ``GPU.0`` or ``NPU``.
    """
    kind, _, number = device.partition(":")
    if device.lower() == "cpu":
        return ("openvino", "onnxruntime") if has_openvino() else ("onnxruntime",)
    if kind.lower() == "cuda":
        return (f"onnxruntime:CUDAExecutionProvider:{number or 0}",)
    return (f"openvino:{device}",)


def fingerprint() -> str:
    """Return a key that changes if engines should be timed again on this machine."""
    versions = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    return "|".join((cpu_name(), str(cores()), *versions))
