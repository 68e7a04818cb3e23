import fcntl
import threading
from pathlib import Path

from edge.folders import exclusive


def test_a_command_that_looks_whether_an_agent_runs_keeps_none_from_starting(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lock"
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        release = threading.Timer(0.02, fcntl.flock, (other, fcntl.LOCK_UN))
        release.start()
        with exclusive(path):
            release.join()
