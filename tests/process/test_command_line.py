"""What is wrong with an option is said by every program."""

import pytest
import typer
from typer.testing import CliRunner

import cloud.__main__
import edge.cli.main
import evaluation.__main__
import models.__main__
import tools.demo

PROGRAMS = {
    "edge": edge.cli.main.app,
    "cloud": cloud.__main__.app,
    "evaluation": evaluation.__main__.app,
    "models": models.__main__.app,
    "demo": tools.demo.app,
}


def error_of(program: typer.Typer, *arguments: str) -> str:
    """The error of the command as one line, without the frame around it."""
    result = CliRunner().invoke(program, arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("program", "arguments", "says"),
    [
        ("edge", "certs x --days 29", "for '--days': Input should be greater than or equal to 30"),
        ("cloud", "serve --threads 1.5", "for '--threads': Input should be a valid integer"),
        ("evaluation", "nothing-lost --rounds x", "for '--rounds': Input should be a valid"),
        ("models", "train lung", "No such command 'lung'"),
        ("models", "qat lung", "'lung' is not one of 'screening', 'hybrid'"),
        ("demo", "--seed x", "for '--seed': Input should be a valid integer"),
    ],
)
def test_an_option_is_named_with_what_is_expected(program: str, arguments: str, says: str) -> None:
    said = error_of(PROGRAMS[program], *arguments.split())
    assert says in said
    assert "pydantic" not in said


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_escape_sequence_of_an_argument_reaches_the_terminal(program: str) -> None:
    """A file whose name begins with a hyphen is an option where the shell fills in names."""
    said = error_of(PROGRAMS[program], "--\x1b]0;owned\x07")
    assert "owned" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_has_a_short_option(program: str) -> None:
    assert "Usage" in CliRunner().invoke(PROGRAMS[program], ["-h"]).stdout
