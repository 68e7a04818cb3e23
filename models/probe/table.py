"""What `overread-models probe` prints: ways, what INT8 and fusion gain, and what is not here."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from rich.table import Table

from models.runtime.choice import REFERENCE, Way

NAMES = [one.name for one in fields(Way)]
FORMS = {"p50_ms": 0, "p95_ms": 0, "ratio": 2, "peak_mb": 0}


def shown(result: Mapping[str, Any]) -> Iterator[Table | str]:
    """Yield the tables and lines of a result for people."""
    heads = ("artifact", "engine", "device", "precision", "threads", "stages", "agrees",
             "decisions", "p50 ms", "p95 ms", "ratio", "MB", "chosen")  # fmt: skip
    yield _table(heads, map(_cells, result["rows"]))
    yield gains(result)
    keys = ("device", "package", "precision", "fusions")
    others = [[one[key] for key in keys] for one in result["absent"]]
    yield _table(("not here", "package", "precision", "fused"), others)
    yield f"{result['cpu']}, {result['cores']} cores"


def gains(result: Mapping[str, Any]) -> Table:
    """Return how the times of two ways on all cores compare; both took turns with a third."""
    times = []
    for row in result["rows"]:
        stem, _, precision = row["artifact"].rpartition("-")
        if precision != "int8" or not row["chosen"]:
            continue
        best, plain = ("int8", row["engine"], True), ("int8", REFERENCE, True)
        float32 = {one: ("fp32", one, True) for one in (row["engine"], REFERENCE)}
        pairs = [(best, other) for other in float32.values()]
        pairs += [(("int4", row["engine"], True), best), (plain, float32[REFERENCE])]
        pairs += [((p, REFERENCE, True), (p, REFERENCE, False)) for p in ("fp32", "int8")]
        for pair in dict.fromkeys(pairs):
            ours, theirs = (one_pass(result, f"{stem}-{p}", on, fused) for p, on, fused in pair)
            if ours and theirs:
                share = ours["ratio"] / theirs["ratio"]
                figures = f"{share:.2f}", f"{1 / share:.1f}"
                times.append((stem, *(_named(*one) for one in pair), *figures))
    return _table(("network", "what", "against", "share of the time", "times as fast"), times)


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table whose first column is never wrapped, and no figure of it cut off."""
    made = Table()
    for number, head in enumerate(heads):
        made.add_column(head, no_wrap=number == 0, overflow="fold")
    for row in rows:
        made.add_row(*map(str, row))
    return made


def one_pass(
    result: Mapping[str, Any], artifact: str, engine: str, fused: bool = True
) -> Mapping[str, Any] | None:
    """Return the row of an artifact on an engine on all cores in one stage; None if it failed."""
    wanted = {"artifact": artifact, "engine": engine, "threads": result["cores"], "stages": 1,
              "half": False, "fused": fused, "error": ""}  # fmt: skip
    return next((row for row in result["rows"] if wanted.items() <= row.items()), None)


def _named(precision: str, engine: str, fused: bool) -> str:
    return f"{precision.upper()} on {engine}" + ", not fused" * (not fused)


def _cells(row: Mapping[str, Any]) -> list[object]:
    engine, _, device = row["engine"].partition(":")
    precision = row["artifact"].rpartition("-")[2]
    kind = precision + ", bf16" * row["half"] + ", not fused" * (not row["fused"])
    first = [row["artifact"], engine, device or "CPU", kind, row["threads"], row["stages"]]
    if row["error"]:
        return [*first, row["error"], *"------"]
    wrong = Way(**{name: row[name] for name in NAMES}).wrong(precision)
    agrees = wrong or f"yes, {row['difference']:.3f}" if "same" in row else "-"
    decisions = f"{row['same']} of {row['of']}" if "same" in row else "-"
    figures = (f"{row[key]:.{digits}f}" for key, digits in FORMS.items())
    return [*first, agrees, decisions, *figures, "yes" * row["chosen"]]
