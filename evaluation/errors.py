"""Errors of an evaluation, sorted by what must be put right.

EvaluationError          the evaluation cannot be run
├── MissingProgram       a program that the evaluation starts is not installed
└── ServiceFailed        a process that the evaluation started failed

Tables and data that cannot be used are `BadTable` and `MissingData` of `models.runtime.errors`.
"""


class EvaluationError(Exception):
    """The evaluation cannot be run; the message says what to put right."""


class MissingProgram(EvaluationError):
    """A program that the evaluation starts is not installed; ``remedy`` installs it."""

    def __init__(self, program: str, remedy: str) -> None:
        super().__init__(f"{program}: not installed. {remedy}")


class ServiceFailed(EvaluationError):
    """A process that the evaluation started failed: it did not start, serve or end as it should."""
