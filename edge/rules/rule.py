"""Rules: which series are read, and what is said of their study; and the file that states them.

A rule has conditions and says what happens to a series that fulfils all of them. The first rule
that takes a series decides; a series that no rule takes is read as if there were no rules. The file
is TOML, with one table ``[[rules]]`` for each rule.
"""

import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from fnmatch import translate
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edge.errors import EdgeError
from imaging.selection import SeriesSummary
from process.text import printable_line
from protos.messages import Priority


class Action(Enum):
    """What happens to a series."""

    READ = "read"
    IGNORE = "ignore"


@dataclass(frozen=True)
class Received:
    """How a series came: the AE titles of sender and receiver; empty where it is not known."""

    calling_ae: str = ""
    called_ae: str = ""


TEXTS: Mapping[str, Callable[[SeriesSummary, Received], tuple[str, ...]]] = MappingProxyType(
    {
        "modality": lambda series, _: (series.header.modality,),
        "description": lambda series, _: (series.header.series_description,),
        "kernel": lambda series, _: series.kernels,
        "body_part": lambda series, _: (series.body_part,),
        "manufacturer": lambda series, _: (series.header.manufacturer,),
        "image_type": lambda series, _: series.image_type,
        "calling_ae": lambda _, received: (received.calling_ae,),
        "called_ae": lambda _, received: (received.called_ae,),
    }
)
"""The conditions on text by their name in a file of rules: the values that each looks at."""
FIELDS = ("name", *TEXTS, "slice_thickness_mm", "action", "priority", "screening")
"""What a rule may have."""


@dataclass(frozen=True)
class Range:
    """A range in mm that includes both ends; None for no limit."""

    least: float | None = None
    most: float | None = None

    def holds(self, value: float | None) -> bool:
        """Return whether the value is stated and within the range."""
        if value is None:
            return False
        above = self.least is None or value >= self.least
        return above and (self.most is None or value <= self.most)


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        texts: patterns by the name of the condition (`TEXTS`); one of them must fit.
        slice_thickness_mm: of the series; None for no condition.
        priority: of its study; None for the agent's own.
        screening: whether the study is a screening examination.
    """

    name: str
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    slice_thickness_mm: Range | None = None
    action: Action = Action.READ
    priority: Priority | None = None
    screening: bool = False

    @property
    def takes_all(self) -> bool:
        """Whether it has no condition."""
        return not self.texts and self.slice_thickness_mm is None

    def takes(self, series: SeriesSummary, received: Received) -> bool:
        """Return whether the series fulfils every condition."""
        thickness = self.slice_thickness_mm
        if thickness is not None and not thickness.holds(series.slice_thickness_mm):
            return False
        return all(
            fits(TEXTS[name](series, received), patterns) for name, patterns in self.texts.items()
        )


DEFAULT = Rule("default")
"""The last rule of every file: a CT of the chest is read, chosen by its pixels."""


def fits(values: Iterable[str], patterns: Iterable[str]) -> bool:
    r"""Return whether a pattern fits one of the values, or all of them joined by a backslash.

    ``*`` and ``?`` stand for any letters and any letter, case makes no difference. A value that is
    not stated fits the empty pattern and no other.
    """
    stated = [value for value in values if value] or [""]
    joined = "\\".join(stated)
    return any(
        value == pattern == "" or (value != "" and _compiled(pattern).match(value) is not None)
        for pattern in patterns
        for value in dict.fromkeys((*stated, joined))
    )


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    # a bracket is a letter: descriptions have them
    return re.compile(translate(pattern.replace("[", "[[]")), re.IGNORECASE)


@dataclass(frozen=True)
class Rules:
    """The rules of one file in their order; none where there is no file."""

    rules: tuple[Rule, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rules)

    def match(self, series: SeriesSummary, received: Received) -> tuple[int, Rule]:
        """Return the first rule that takes the series, with its place among the rules."""
        for place, rule in enumerate(self.rules):
            if rule.takes(series, received):
                return place, rule
        return len(self.rules), DEFAULT

    def named(self, name: str) -> Rule:
        """Return the rule of this name; `DEFAULT` if there is none."""
        return next((rule for rule in self.rules if rule.name == name), DEFAULT)


@dataclass(frozen=True)
class AppliedRule:
    """The rule that took the series of a study, as its report names it."""

    name: str = DEFAULT.name
    action: Action = Action.READ
    priority: Priority = Priority.ROUTINE
    screening: bool = False

    @classmethod
    def of(cls, rule: Rule, own: Priority) -> "AppliedRule":
        """Return what the rule says; ``own`` is the priority of a rule that names none."""
        return cls(rule.name, rule.action, rule.priority or own, rule.screening)


NO_RULES = Rules()
BY_DEFAULT = AppliedRule()
"""Of a study that no rule took."""


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
    except (ValueError, RecursionError) as error:  # also a number too long, or lists too deep
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
            other = "the last, implicit rule" if rule.name == DEFAULT.name else "an earlier rule"
            taken = f"{rule.name!r} is the name of {other}"
            raise BadRules(f"{where}, name: {taken}, expected a name of its own")
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
    return Rule(name.strip(), texts, field.range("slice_thickness_mm"), action, priority, screening)


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
            if not number or not 0 <= limit <= sys.float_info.max:
                self._fail(name, expected)
        least, most = value.get("min"), value.get("max")
        if least is not None and most is not None and least > most:
            self._fail(name, "a min that is not above the max")
        return Range(*(None if one is None else float(one) for one in (least, most)))

    def _fail(self, name: str, expected: str) -> None:
        raise BadRules(f"{self.where}, {name} = {_shown(self._table[name])}: expected {expected}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
