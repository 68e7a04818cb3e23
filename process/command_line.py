"""Errors of the command line in plain words; typer's are those of pydantic, for programmers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup


class PlainGroup(TyperGroup):
    """A program with several commands."""

    def invoke(self, ctx: Any) -> Any:
        """Parse the options of a command and run it."""
        with _in_plain_words():
            return super().invoke(ctx)


class PlainCommand(TyperCommand):
    """A program with a single command."""

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        """Parse the options."""
        with _in_plain_words():
            return super().make_context(*arguments, **more)


@contextmanager
def _in_plain_words() -> Iterator[None]:
    try:
        yield
    except typer.BadParameter as error:
        if isinstance(error.__cause__, ValidationError):
            wrong = error.__cause__.errors()[0]
            limits = wrong.get("ctx", {})
            # an error of a check by typer, which is a sentence, or of a type or limit
            error.message = str(
                limits.get("error")
                or f"{wrong['input']!r}, expected {_expected(wrong['type'], limits)}"
            )
        raise


def _expected(kind: str, limits: dict[str, Any]) -> str:
    match kind.split("_"):
        case ["int", *_]:
            return "a whole number"
        case ["float", *_] | ["finite", *_]:
            return "a number"
        case ["bool", *_]:
            return "true or false"
        case ["greater", "than", *_]:
            return f"at least {limits['ge']}" if "ge" in limits else f"more than {limits['gt']}"
        case ["less", "than", *_]:
            return f"at most {limits['le']}" if "le" in limits else f"less than {limits['lt']}"
        case _:
            return "another kind of value"
