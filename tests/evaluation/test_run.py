import json
from typing import Annotated, Any

import typer
from typer.testing import CliRunner

from evaluation.result import SHARE, Bar, Table
from evaluation.run import Command, Seed, command, register


@command(
    Table("rows", {"name": "reader", "found": ("found", SHARE)}, title="{nodules} nodules"),
    "Rounds: {rounds}.",
    bars=lambda result: [Bar("nodules", result["nodules"], 3, least=True)],
)
def twice_read(
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 2, seed: Seed = 0
) -> dict[str, Any]:
    """Reads twice."""
    del seed
    return {"nodules": 4, "rounds": rounds, "rows": [{"name": "edge", "found": 0.5}]}


def said(*arguments: str, of: Command = twice_read) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app, [of])
    done = CliRunner().invoke(app, ["twice-read", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_command_prints_tables_remarks_and_bars() -> None:
    words = said("--rounds", "3")
    for part in ("4 nodules", "│ edge   │ 50.0 %", "Rounds: 3.", "at least 3", "yes"):
        assert part in words


def test_json_has_the_machine_the_seed_and_whether_bars_are_met() -> None:
    result = json.loads(said("--json", "--seed", "7"))
    assert result["cores"] > 0
    assert result["cpu"]
    assert (result["seed"], result["rounds"]) == (7, 2)
    assert [one["met"] for one in result["bars"]] == [True]


def test_help_is_that_of_the_function() -> None:
    words = said("--help")
    for part in ("Reads twice.", "--rounds", "--json"):
        assert part in words
