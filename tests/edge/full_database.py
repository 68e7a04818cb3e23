"""A database that finds no room on the disk, or that another holds."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from edge.store.pending import PendingStep
from edge.store.studies import Step, StepHook


def full_error() -> sqlite3.OperationalError:
    """What sqlite raises when the disk is full."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def full_at(step: Step | PendingStep, times: int) -> StepHook:
    """A hook that finds the disk full just before ``step`` is durable, so many times."""
    left = [times]

    def on_step(now: Step | PendingStep, durable: bool) -> None:
        if now is step and not durable and left[0]:
            left[0] -= 1
            raise full_error()

    return on_step


def held_at(path: Path, step: Step | PendingStep, looks: int) -> StepHook:
    """A hook from which on another holds the database at ``path``, just before ``step``.

    It lets go when so many more steps were tried.
    """
    left, others = [looks], list[sqlite3.Connection]()

    def on_step(now: Step | PendingStep, durable: bool) -> None:
        if others:
            left[0] -= 1
            if not left[0]:
                others.pop().close()
        elif left[0] and now is step and not durable:
            others.append(sqlite3.connect(path, isolation_level=None))
            others[0].execute("BEGIN IMMEDIATE")

    return on_step
