"""What the demonstration is installed with: the base dependencies and nothing more."""

from __future__ import annotations

import subprocess
import sys

TRAINING_ONLY = ("torch", "matplotlib", "scipy", "tomli_w", "onnxscript", "pytest")


def test_demo_loads_nothing_that_make_demo_does_not_install() -> None:
    """Neither it nor what it imports needs the packages of training or of tests."""
    found = f"sorted(set({TRAINING_ONLY!r}) & set(sys.modules))"
    code = f"import sys, evaluation.demo; print({found})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
