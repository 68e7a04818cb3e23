"""Decisions on record: all that one was made on, in one line of the log, to be made again offline.

A line tells scores, places in the lung box and what is known of the link; nothing of the patient.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

import structlog
from pydantic import TypeAdapter

from edge.decide import Plan, Situation, decide
from edge.selection import SelectionPolicy

EVENT = "decided"

_log = structlog.get_logger(__name__)


def decide_and_log(situation: Situation, study_key: str) -> Plan:
    """The plan, with a line in the log from which `replay` makes it again."""
    plan = decide(situation)
    _log.info(EVENT, study=study_key, situation=asdict(situation), plan=outcome(plan))
    return plan


def outcome(plan: Plan) -> dict[str, object]:
    """What was decided, as it stands in the log."""
    return {
        "routes": [decision.route.value for decision in plan.decisions],
        "send": list(plan.send),
        "sizes": [size.value for size in plan.sizes],
        "later": list(plan.later),
        "held_back": plan.held_back,
        "audit": list(plan.audit),
    }


def replay(line: str, policy: SelectionPolicy | None = None) -> Plan:
    """The plan of a logged decision, made again; under another ``policy`` if one is given.

    Args:
        line: of the log in its JSON form.
        policy: instead of the one that held then.

    Raises:
        ValueError: the line is no decision.
    """
    words: Mapping[str, Any] = json.loads(line)
    if words.get("event") != EVENT:
        raise ValueError(f"event {words.get('event')!r} is no decision")
    situation = dict(words["situation"])
    if policy is not None:
        situation["policy"] = asdict(policy)
    return decide(_situations().validate_python(situation))


@cache
def _situations() -> TypeAdapter[Situation]:
    """Reads a situation from JSON; built once, which takes longer than reading."""
    return TypeAdapter(Situation)
