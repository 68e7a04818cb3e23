"""The log of a process: one line an event, for people or for programs.

No line obeys what comes from outside: escape sequences and line feeds of a value are written out.
"""

import io
import json
import logging
import math
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

from process.text import printable, printable_line
from process.tracing import log_trace


def configure_logging(form: Literal["text", "json"], stream: TextIO) -> None:
    """Log to ``stream``, one line an event, as ``text`` or ``json``."""
    renderers: list[Processor]
    if form == "json":
        # without the variables of the frames: they hold headers
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderers = [
            structlog.processors.ExceptionRenderer(transformer),
            structlog.processors.JSONRenderer(),
        ]
    else:
        terminal = stream.isatty()
        console = structlog.dev.ConsoleRenderer(
            colors=terminal, sort_keys=False, exception_formatter=_write_traceback
        )
        renderers = [_without_tables if terminal else _tables_as_json, _as_text, console]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            log_trace,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *renderers,
        ],
        logger_factory=structlog.PrintLoggerFactory(file=stream),
    )


class Sparse:
    """Chooses the lines of a flood that are logged: one each second of every kind."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._seen = clock, dict[tuple[str, ...], tuple[float, int]]()

    def more(self, *kind: str) -> dict[str, int] | None:
        """Return how many lines were left out before this one, if any; None to leave it out."""
        at_s, left_out = self._seen.get(kind, (-math.inf, 0))
        if (now_s := self._clock()) < at_s + 1.0:
            self._seen[kind] = at_s, left_out + 1
            return None
        self._seen[kind] = now_s, 0
        return {"left_out": left_out} if left_out else {}


def quieten() -> None:
    """Keep data of patients out of Python's log and warnings, where libraries would write it."""
    for name in ("pynetdicom", "python_multipart", "uvicorn"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"(pydicom|pynetdicom)\.")


def _without_tables(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Leave tables out: on a terminal they would hide the other lines."""
    return {key: value for key, value in event.items() if not isinstance(value, (dict, list))}


def _tables_as_json(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Write each table as compact JSON, so that a program can read it from the line."""
    return {
        key: json.dumps(value, separators=(",", ":")) if isinstance(value, (dict, list)) else value
        for key, value in event.items()
    }


def _as_text(_logger: Any, _method: str, event: EventDict) -> EventDict:
    return {k: printable_line(v) if isinstance(v, str) else v for k, v in event.items()}


def _write_traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write(printable(text.getvalue()))
