"""A database that finds no room on the disk."""

from __future__ import annotations

import sqlite3

from edge.debt import OwedStep
from edge.spool import Step, StepHook


def full_error() -> sqlite3.OperationalError:
    """What sqlite raises when the disk is full."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def full_at(step: Step | OwedStep, times: int) -> StepHook:
    """A hook that finds the disk full just before ``step`` is durable, so many times."""
    left = [times]

    def on_step(now: Step | OwedStep, durable: bool) -> None:
        if now is step and not durable and left[0]:
            left[0] -= 1
            raise full_error()

    return on_step
