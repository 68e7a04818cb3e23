"""Log decisions with all that they depend on, and make them again offline.

A log line holds scores, positions in the lung box and the link's estimate; nothing of the patient.
"""

import json
from dataclasses import asdict
from functools import cache

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
    _log.info(EVENT, study_key=study_key, situation=asdict(situation), plan=logged)
    return plan


def replay(line: str, policy: SelectionPolicy | None = None) -> Plan:
    """Make the decision in a ``line`` of the JSON log again, or with another ``policy``.

    Raises:
        ValueError: the line is no decision.
    """
    record = json.loads(line)
    if record.get("event") != EVENT:
        raise ValueError(f"event {record.get('event')!r} is no decision")
    situation = dict(record["situation"])
    if policy is not None:
        situation["policy"] = asdict(policy)
    return decide(_situations().validate_python(situation))


@cache
def _situations() -> TypeAdapter[Situation]:
    """Return the parser of situations; building it takes longer than parsing."""
    return TypeAdapter(Situation)
