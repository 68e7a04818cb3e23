import os
import signal
import socket
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evaluation import world
from evaluation.errors import ServiceFailed
from evaluation.sleeping_cloud import program
from evaluation.world import (
    Process,
    apart,
    free_ports,
    log_tail,
    running,
    running_cloud,
    write_toml,
)

SLEEPS = "import time; print('up', flush=True); time.sleep(600)"
OBEYS = f"import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); {SLEEPS}"
IS_DEAF = f"import signal; signal.signal(15, signal.SIG_IGN); {SLEEPS}"
LEAVES_DIRTY = f"import signal, sys; signal.signal(15, lambda *_: sys.exit(9)); {SLEEPS}"


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@contextmanager
def started(name: str, code: str, log: Path) -> Iterator[Process]:
    """A process that runs, until it is stopped at the end of the context."""
    with running(name, _python(code), log) as process:
        process.wait_until(lambda: "up" in log.read_text(), "start", 60)
        yield process


@pytest.mark.parametrize(
    ("code", "end", "status"),
    [(LEAVES_DIRTY, "exit status 9", 9), (IS_DEAF, "signal 9", -signal.SIGKILL)],
)
def test_an_unclean_end_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, end: str, status: int
) -> None:
    """A process that does not end by itself is killed."""
    monkeypatch.setattr(world, "STOP_S", 0.2 if code == IS_DEAF else world.STOP_S)
    with (
        pytest.raises(ServiceFailed, match=f"ended with {end} after SIGTERM"),
        started("edge", code, tmp_path / "log") as process,
    ):
        pass
    assert process.stop() == status


def test_no_process_is_left_when_something_fails(tmp_path: Path) -> None:
    context = started("edge", LEAVES_DIRTY, tmp_path / "log")
    process = context.__enter__()
    hidden = context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not hidden
    assert process.stop() == 9


def test_neither_ctrl_c_nor_settings_of_the_environment_reach_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERREAD_EDGE_CLOUD__ADDRESS", "off")
    monkeypatch.setenv("overread_cloud_model", "another")
    monkeypatch.setenv("SOMETHING_ELSE", "stays")
    log = tmp_path / "log"
    names = "[k for k in os.environ if 'OVERREAD' in k.upper() or 'ELSE' in k]"
    with started("edge", f"import os; print(os.getpgid(0), {names}); {OBEYS}", log):
        pass
    group, names = log.read_text().splitlines()[0].split(maxsplit=1)
    assert int(group) != os.getpgid(0)
    assert names == "['SOMETHING_ELSE']"


def test_an_early_end_quotes_the_log_and_says_what_to_do(tmp_path: Path) -> None:
    code, log = "import sys; print('UnknownArtifact: x'); sys.exit(1)", tmp_path / "cloud.log"
    with pytest.raises(ServiceFailed) as failure, running("cloud", _python(code), log) as process:
        process.wait_until(lambda: False, "serve", 60)
    said = str(failure.value)
    assert said.startswith("cloud ended with exit status 1 before its time\n  | UnknownArtifact: x")
    assert "git checkout -- models/weights" in said


def test_a_slow_start_has_an_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        pytest.raises(ServiceFailed, match="edge did not start within 0 s"),
        running("edge", _python(SLEEPS), log) as process,
    ):
        process.wait_until(lambda: False, "start", 0.1)


def test_a_command_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ServiceFailed, match="edge cannot be started"),
        running("edge", [str(tmp_path / "none")], tmp_path / "log"),
    ):
        pass


def test_tail_is_short_whatever_the_log(tmp_path: Path) -> None:
    """Twelve lines at most, undecodable bytes replaced, and a word for an empty log."""
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"%d \xff\n" % n for n in range(30_000)))
    assert log_tail(log).splitlines()[0] == "  | 29988 \N{REPLACEMENT CHARACTER}"
    assert len(log_tail(log).splitlines()) == 12
    log.write_bytes(b"")
    assert log_tail(log) == "  | (its log is empty)"


def test_a_killed_cloud_comes_back_at_the_same_address() -> None:
    with running_cloud(program(0.0, 0.0)) as cloud:
        assert cloud.serves
        first = cloud.address
        assert not first.endswith(":0")
        cloud.restart()
        cloud.wait()
        assert (cloud.address, cloud.kills) == (first, 1)
    assert not cloud.serves


def test_a_cloud_that_ends_by_itself_is_an_error() -> None:
    early = r"ended with exit status 2 before its time\n(.|\n)*Invalid value for '--each-ms'"
    with (
        pytest.raises(ServiceFailed, match=early),
        running_cloud((*program(0.0, 0.0), "--each-ms", "soon")),
    ):
        pass


def test_settings_are_written_as_toml(tmp_path: Path) -> None:
    settings = {
        "cloud__address": "off", "poll_s": 0.5, "rules": ["a", "b"], "quiet": True, "none": [],
        "targets": [{"name": "one"}, {"name": "two"}],
    }  # fmt: skip
    read = tomllib.loads(write_toml(tmp_path / "x.toml", settings).read_text())
    settings["cloud"] = {"address": settings.pop("cloud__address")}
    assert read == settings


class Counter:
    """Counts in its own process, and ends it at 13."""

    def __init__(self) -> None:
        self.number = 0

    def add(self, number: int, *, twice: bool = False) -> tuple[int, int]:
        if number == 13:
            print("thirteen is unlucky", file=sys.stderr)
            os._exit(4)
        self.number += number * (1 + twice) // (number != 7)
        return self.number, os.getpid()


def test_an_object_apart_keeps_its_state_and_its_end_is_an_error(tmp_path: Path) -> None:
    with apart(Counter, tmp_path / "log") as counter:
        assert counter.add(2)[0] == 2
        with pytest.raises(ServiceFailed, match="ZeroDivisionError"):
            counter.add(7)
        number, pid = counter.add(3, twice=True)
        assert number == 8
        assert pid != os.getpid()
        with pytest.raises(ServiceFailed, match="thirteen is unlucky"):
            counter.add(13)


def test_no_port_is_given_twice_nor_one_that_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    served, other, *more = free_ports(200)
    assert len({served, other, *more}) == 200
    monkeypatch.setattr(world, "_PORTS", iter([served, other]))
    with socket.create_server(("127.0.0.1", served)):
        assert free_ports(1) == [other]
