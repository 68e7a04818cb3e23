"""Regenerate the stubs of the protocols, or check that they match them.

    python -m protos.generate [--check]

It runs the compiler in the root of the repository, so that the imports in the stubs are right.
Needs grpcio-tools and mypy-protobuf.
"""

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ("protos/overread.proto", "protos/inference.proto")
STUBS = tuple(
    proto.replace(".proto", ending)
    for proto in PROTOS
    for ending in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
)
# The version that a compiler writes into its stubs: no drift of the contract.
_STAMPS = re.compile(
    r"^(# Protobuf Python Version: .*|GRPC_GENERATED_VERSION = .*|    \d+,)$", re.MULTILINE
)


def generate(into: Path) -> None:
    """Write the stubs into the folder ``into``, with their paths in the repository."""
    scripts = Path(sysconfig.get_path("scripts"))
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", "-I."),
        *(f"--plugin={p}={scripts / p}" for p in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
        *(f"--{kind}_out={into}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
        *PROTOS,
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def drifted() -> list[str]:
    """Return the committed stubs that differ from newly generated ones, versions apart."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return [name for name in STUBS if _plain(ROOT / name) != _plain(Path(folder) / name)]


def _plain(stub: Path) -> str:
    return _STAMPS.sub("", stub.read_text()) if stub.is_file() else ""


def main() -> int:
    """Generate the stubs, or compare them with ``--check``; return the exit status."""
    parser = argparse.ArgumentParser(prog="protos.generate", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="compare only; exit status 1 if a stub differs"
    )
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    names = drifted()
    for name in names:
        print(f"{name} does not match its .proto file: run python -m protos.generate")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
