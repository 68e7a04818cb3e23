"""What this machine is, and which engines can run a model on it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import openvino


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({_features()})"
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _features() -> str:
    """The instruction sets that low-precision kernels are made of, where Linux lists them."""
    telling = ("amx_int8", "avx512_vnni", "avx512_bf16", "avx_vnni", "avx2")
    known = [name for name in telling if name in _flags()]
    return ", ".join(known) or "no vector extensions known"


def fast_bf16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in hardware."""
    return "amx_bf16" in _flags()


def _flags() -> set[str]:
    try:
        listed = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(listed.split("flags", 1)[-1].split("\n", 1)[0].split())


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def engines() -> tuple[str, ...]:
    """Every engine that can be asked for here, accelerators first.

    ``openvino`` and ``onnxruntime`` run on the CPU; others are named
    ``onnxruntime:PROVIDER`` and ``openvino:DEVICE``.
    """
    providers = [p for p in onnxruntime.get_available_providers() if p not in _NOT_RUNNERS]
    devices = [d for d in openvino.Core().available_devices if not d.startswith("CPU")]
    return (
        *(f"onnxruntime:{provider}" for provider in providers),
        *(f"openvino:{device}" for device in devices),
        "openvino",
        "onnxruntime",
    )


_NOT_RUNNERS = ("CPUExecutionProvider", "AzureExecutionProvider")


def fingerprint() -> str:
    """Changes whenever what was measured on this machine should be measured again."""
    return "|".join((cpu_name(), str(cores()), version("openvino"), version("onnxruntime")))
