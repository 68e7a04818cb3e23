"""The log, in both forms."""

import io
import json
from typing import Literal

import pytest
import structlog

from process.logs import Sparse, configure_logging

OWNED = "\x1b]0;owned\x07"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("terminal", [False, True])
def test_no_escape_sequence_reaches_the_log(form: Literal["text", "json"], terminal: bool) -> None:
    """Neither from a value, nor from a key of a table, nor from a traceback.

    A traceback says where it failed, not what the frames held: that may be of a header.
    """
    stream = Terminal() if terminal else io.StringIO()
    configure_logging(form, stream)
    log = structlog.get_logger()
    log.info("study reported", reason=OWNED, plan={OWNED: [OWNED]}, more=(OWNED,))
    patient_name = "^".join(["DOE", "JANE"])
    try:
        raise ValueError(OWNED)
    except ValueError:
        log.exception("study failed")
    told = stream.getvalue()
    for said in ("owned", "ValueError", "test_no_escape_sequence_reaches_the_log"):
        assert said in told
    for unsaid in ("\x07", "\x1b]", patient_name):
        assert unsaid not in told


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_value_cannot_begin_a_line(form: Literal["text", "json"]) -> None:
    stream = io.StringIO()
    configure_logging(form, stream)
    structlog.get_logger().info("study reported", reason="x\n2026-01-01 [info] all is well")
    assert len(stream.getvalue().splitlines()) == 1


def test_logs_are_a_line_each_as_json() -> None:
    stream = io.StringIO()
    configure_logging("json", stream)
    structlog.get_logger().info("study reported", findings=2)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["findings"]) == ("study reported", "info", 2)
    assert line["timestamp"].endswith("Z")


def test_a_terminal_shows_no_tables() -> None:
    """They are for programs, and one of a decision is a page long."""
    stream, file = Terminal(), io.StringIO()
    for one in (stream, file):
        configure_logging("text", one)
        structlog.get_logger().info("decided", sent=3, situation={"budget_s": 1.5})
    assert "situation" not in stream.getvalue()
    assert "sent" in stream.getvalue()
    assert '{"budget_s":1.5}' in file.getvalue()


def test_of_a_flood_one_line_a_second_says_how_many_were_left_out() -> None:
    now_s = [0.0]
    sparse = Sparse(lambda: now_s[0])
    assert [sparse.more("rejected", "Overloaded") for _ in range(3)] == [{}, None, None]
    assert sparse.more("rejected", "TooLarge") == {}
    now_s[0] = 1.0
    assert sparse.more("rejected", "Overloaded") == {"left_out": 2}
    now_s[0] = 2.5
    assert sparse.more("rejected", "Overloaded") == {}
