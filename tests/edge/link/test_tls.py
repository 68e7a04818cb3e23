"""How often the edge finds out why TLS fails."""

import socket
import threading

from edge.link.channel import DIAGNOSE_EVERY_S, Diagnosis
from edge.settings.core import load_settings
from tests.edge.builders import HandClock


def test_a_diagnosis_is_kept_for_a_while() -> None:
    """Each opens a connection, and a cloud that is down is checked every second."""
    clock, connections = HandClock(), list[None]()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(None)
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        diagnosis = Diagnosis(address, load_settings(), clock)
        for _ in range(5):
            assert diagnosis.reason() == ""
        assert len(connections) == 1
        clock.now_s += DIAGNOSE_EVERY_S
        diagnosis.reason()
        assert len(connections) == 2
        server.shutdown(socket.SHUT_RDWR)
