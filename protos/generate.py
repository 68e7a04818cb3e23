"""Regenerates the stubs beside the contract, or says how they have drifted from it.

    python -m protos.generate [--check]

Run from anywhere; the stubs are made with ``-I. protos/overread.proto`` from the root of the
repository, so that their imports are right untouched. Needs grpcio-tools and mypy-protobuf.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTO = "protos/overread.proto"
STUBS = (
    "protos/overread_pb2.py",
    "protos/overread_pb2.pyi",
    "protos/overread_pb2_grpc.py",
    "protos/overread_pb2_grpc.pyi",
)
# A newer compiler stamps its own version into the same stubs: no drift of the contract.
_STAMPS = re.compile(
    r"^(# Protobuf Python Version: .*|GRPC_GENERATED_VERSION = .*|    \d+,)$", re.MULTILINE
)


def generate(into: Path) -> None:
    """Writes the stubs below ``into``, at the paths that they have in the repository."""
    scripts = Path(sysconfig.get_path("scripts"))
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", "-I."),
        *(
            f"--plugin={name}={scripts / name}"
            for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        ),
        *(f"--{kind}_out={into}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
        PROTO,
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def drifted() -> list[str]:
    """The committed stubs that are not what the contract generates, compilers' stamps apart."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return [name for name in STUBS if _plain(ROOT / name) != _plain(Path(folder) / name)]


def _plain(stub: Path) -> str:
    return _STAMPS.sub("", stub.read_text()) if stub.is_file() else ""


def main() -> int:
    """Generates, or with ``--check`` compares; returns the exit status."""
    parser = argparse.ArgumentParser(prog="protos.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; status 1 on drift")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    names = drifted()
    for name in names:
        print(f"{name} is not what {PROTO} generates: run python -m protos.generate")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
