"""A process that starts and ends as the cloud does, and does nothing: for tests of its deaths.

python -m tests.evaluation.idle_cloud [ends] --address HOST:PORT --ready-file FILE
"""

import signal
import socket
import sys
from pathlib import Path

from edge.atomic_files import write_atomically


def run(arguments: list[str]) -> None:
    """Listens until SIGTERM; with ``ends`` it ends at once, with status 3."""
    if arguments[0] == "ends":
        print("no model to read with", flush=True)
        raise SystemExit(3)
    host, _, port = arguments[arguments.index("--address") + 1].rpartition(":")
    with socket.create_server((host, int(port)), reuse_port=True) as server:
        ready = Path(arguments[arguments.index("--ready-file") + 1])
        write_atomically(ready, f"{host}:{server.getsockname()[1]}".encode())
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    run(sys.argv[1:])
