"""Read a file of rules: TOML, one table ``[[rules]]`` for each rule."""

import math
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.rules.rule import DEFAULT, TEXTS, Action, Range, Rule, Rules
from process.text import printable_line
from protos.messages import Priority

FIELDS = ("name", *TEXTS, "slice_thickness_mm", "action", "priority", "screening")
"""What a rule may have."""


class BadRules(EdgeError):
    """A file of rules is wrong; the message names the rule, the field and what is expected."""


def load_rules(file: Path | None) -> Rules:
    """Return the rules of a file; none without a file.

    Raises:
        BadRules: the file cannot be read, or a rule is wrong.
    """
    if file is None:
        return Rules()
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRules(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadRules(f"{file} is not UTF-8 text, expected a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise BadRules(f"{file} is not valid TOML: {error}") from error
    try:
        return _rules(values)
    except BadRules as error:
        raise BadRules(f"{file}: {error}") from None


def _rules(values: Mapping[str, Any]) -> Rules:
    for name in values.keys() - {"rules"}:
        raise BadRules(f"{printable_line(name)}: expected only tables [[rules]]")
    tables = values.get("rules")
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise BadRules("expected one table [[rules]] for each rule")
    rules: list[Rule] = []
    for number, table in enumerate(tables, start=1):
        rule = _rule(table, number)
        where = f"rule {number} ({rule.name!r})"
        if rule.name in {DEFAULT.name, *(one.name for one in rules)}:
            taken = "is the name of the last, implicit rule" if rule.name == DEFAULT.name else "is"
            taken = taken if taken != "is" else "is the name of an earlier rule"
            raise BadRules(f"{where}, name: {rule.name!r} {taken}, expected a name of its own")
        before = next((one for one in rules if one.takes_all), None)
        if before is not None:
            raise BadRules(
                f"{where} never decides: {before.name!r} before it has no condition and takes every"
                " series; put it last"
            )
        rules.append(rule)
    return Rules(tuple(rules))


def _rule(table: Mapping[str, Any], number: int) -> Rule:
    name = table.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadRules(f"rule {number}, name = {_shown(name)}: expected a name")
    field = _Fields(table, f"rule {number} ({printable_line(name)!r})")
    field.require_known()
    action = field.choice("action", {one.value: one for one in Action}, Action.READ)
    priority = field.choice("priority", {one.value: one for one in Priority}, None)
    screening = field.flag("screening")
    if action is Action.IGNORE and (priority is not None or screening):
        without = "priority" if priority is not None else "screening"
        raise BadRules(f"{field.where}, {without}: has no effect on series that are ignored")
    texts = {one: field.patterns(one) for one in TEXTS if one in table}
    thickness = field.range("slice_thickness_mm")
    return Rule(name.strip(), texts, thickness, action, priority, screening)


class _Fields:
    """The fields of one rule; an error names rule and field."""

    def __init__(self, table: Mapping[str, Any], where: str) -> None:
        self._table, self.where = table, where

    def require_known(self) -> None:
        for name in self._table.keys() - set(FIELDS):
            near = get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(FIELDS)}"
            raise BadRules(f"{self.where}, {printable_line(name)}: there is no such field; {hint}")

    def choice(self, name: str, values: Mapping[str, Any], default: Any) -> Any:
        if name not in self._table:
            return default
        value = self._table[name]
        if not isinstance(value, str) or value not in values:
            self._fail(name, " or ".join(f'"{one}"' for one in values))
        return values[value]

    def flag(self, name: str) -> bool:
        value = self._table.get(name, False)
        if not isinstance(value, bool):
            self._fail(name, "true or false")
        return bool(value)

    def patterns(self, name: str) -> tuple[str, ...]:
        value = self._table[name]
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not found or not all(isinstance(p, str) for p in found):
            self._fail(name, "text or a list of texts, where * and ? stand for other letters")
        return tuple(pattern.strip() for pattern in found)

    def range(self, name: str) -> Range | None:
        if name not in self._table:
            return None
        value, expected = self._table[name], "{ min = MM, max = MM }, or one of the two"
        if not isinstance(value, dict) or not value or value.keys() - {"min", "max"}:
            self._fail(name, expected)
        for limit in value.values():
            number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if not number or not math.isfinite(limit) or limit < 0:
                self._fail(name, expected)
        least, most = value.get("min"), value.get("max")
        if least is not None and most is not None and least > most:
            self._fail(name, "a min that is not above the max")
        return Range(*(None if one is None else float(one) for one in (least, most)))

    def _fail(self, name: str, expected: str) -> None:
        value = _shown(self._table[name])
        raise BadRules(f"{self.where}, {name} = {value}: expected {expected}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
