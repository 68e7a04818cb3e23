"""Rules: which series are read, and what is said of their study. Nothing here opens a file.

A rule has conditions and says what happens to a series that fulfils all of them. The first rule
that takes a series decides; a series that no rule takes is read as if there were no rules.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import translate
from functools import cache
from types import MappingProxyType

from imaging.selection import SeriesSummary
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
