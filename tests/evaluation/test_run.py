import json
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from evaluation.run import POINTS, SHARE, Bar, Command, Seed, Table, command, register, text


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


SPAN = {"value": 0.913, "low": 0.828, "high": None}


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [
        (None, "{:.1f}", "-"),
        (True, "{}", "yes"),
        (0.0123, "{:.3f} s", "0.012 s"),
        (0.1234, SHARE, "12.3 %"),
        (0.1234, POINTS, "12.3"),
        (SPAN, SHARE, "91.3 (83--) %"),
        (SPAN, POINTS, "91.3 (83--)"),
        (SPAN, "{:.2f}", "0.91 (0.83--)"),
    ],
)
def test_values_have_one_form_each(value: Any, form: str, shown: str) -> None:
    assert text(value, form) == shown


def test_a_table_follows_keys_down_and_makes_rows() -> None:
    table = Table(
        "readers",
        {"name": "reader", "median.value": ("ms", "{:.1f}"), "at.1": "at 1"},
        lambda result: ({"name": name, **one} for name, one in result["of"].items()),
        "{head} of all",
    )
    rows = table.of({
        "head": "ms",
        "of": {
            "edge": {"median": {"value": 1.26}, "at": [5, 6]},
            "cloud": {"median": None, "at": [7, 8]},
        },
    })  # fmt: skip
    assert rows.markdown().splitlines() == [
        "| reader | ms | at 1 |", "| --- | --- | --- |", "| edge | 1.3 | 6 |", "| cloud | - | 8 |",
    ]  # fmt: skip
    assert rows.title == "ms of all"


@pytest.mark.parametrize(
    ("bar", "met", "required"),
    [
        (Bar("late", 0, 0), True, "0"),
        (Bar("late", 1, 0, shown="1 of 610"), False, "0"),
        (Bar("p95", 86.0, 85, "{:.0f} ms"), False, "at most 85 ms"),
        (Bar("kept", 0.9, 0.9, SHARE, least=True), True, "at least 90.0 %"),
        (Bar("kept", None, 0.9, SHARE, least=True), False, "at least 90.0 %"),
    ],
)
def test_a_bar_says_what_is_required_and_if_it_is_met(bar: Bar, met: bool, required: str) -> None:
    assert (bar.met, bar.required) == (met, required)
    assert bar.measured == (bar.shown or text(bar.value, bar.form))
