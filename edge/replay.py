"""Log decisions with all that they depend on, and make them again offline.

A log line holds scores, positions in the lung box and the link's estimate; nothing of the patient.
"""

import ast
import json
import re
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from typing import Any

import structlog
from pydantic import TypeAdapter

from edge.decide import Plan, Situation, decide
from edge.selection import SelectionPolicy

EVENT = "decided"

_log = structlog.get_logger(__name__)


def decide_and_log(situation: Situation, study_key: str) -> Plan:
    """Decide, and log a line from which `replay` makes the same plan."""
    plan = decide(situation)
    logged = {
        "routes": [decision.route.value for decision in plan.decisions],
        "send": list(plan.send),
        "sizes": [size.value for size in plan.sizes],
        "later": list(plan.later),
        "held_back": plan.held_back,
        "audit": list(plan.audit),
    }
    _log.info(
        EVENT,
        study_key=study_key,
        version=version("overread"),
        candidates=len(plan.decisions),
        sent=len(plan.send),
        plan=logged,
        situation=asdict(situation),  # last: `_fields` reads it up to the end of a line of text
    )
    return plan


def replay(line: str, policy: SelectionPolicy | None = None) -> Plan:
    """Make the decision in a ``line`` of the log again, or with another ``policy``.

    Log a warning if another version of the program wrote the line: its rules may have differed.

    Raises:
        ValueError: the line is no decision.
    """
    fields = _fields(line)
    if fields.get("event") != EVENT:
        raise ValueError(f"event {fields.get('event')!r} is no decision")
    logged, here = fields.get("version", "unknown"), version("overread")
    if logged != here:
        _log.warning("another version made this decision", logged=logged, version=here)
    situation = dict(fields["situation"])
    if policy is not None:
        situation["policy"] = asdict(policy)
    return decide(_situations().validate_python(situation))


def _fields(line: str) -> dict[str, Any]:
    """Parse a line of the log, in either form; something may stand before it."""
    if (start := line.find('{"')) >= 0 and "] decided " not in line[:start]:
        parsed: dict[str, Any] = json.loads(line[start:])
        return parsed
    found = re.search(rf"\] {EVENT} .* version=(\S+) .* situation=(.*)", line)
    if found is None:
        raise ValueError(f"no decision, and no JSON: {line[:100]!r}")
    # the log writes a value with spaces as a Python string
    text = found[2].strip()
    situation = json.loads(ast.literal_eval(text) if text[0] in "'\"" else text)
    return {"event": EVENT, "version": found[1], "situation": situation}


@cache
def _situations() -> TypeAdapter[Situation]:
    """Return the parser of situations; building it takes longer than parsing."""
    return TypeAdapter(Situation)
