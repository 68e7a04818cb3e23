import fcntl
import multiprocessing
import threading
from pathlib import Path

from edge.folders import AlreadyRunning, exclusive


def _hold(path: Path, held: multiprocessing.Queue[str]) -> None:
    try:
        with exclusive(path):
            held.put("held")
    except AlreadyRunning as error:
        held.put(str(error))


def test_lock_keeps_a_second_process_out_until_it_is_released(tmp_path: Path) -> None:
    """The error names the taken folder; another process gets it afterwards."""
    context = multiprocessing.get_context("forkserver")
    told = context.Queue()

    def other() -> str:
        process = context.Process(target=_hold, args=(tmp_path / "lock", told))
        process.start()
        process.join(120)
        return str(told.get(timeout=30))

    with exclusive(tmp_path / "lock"):
        assert other() == f"{tmp_path}: another agent uses this folder"
    assert other() == "held"


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
