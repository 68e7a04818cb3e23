"""The models as a part of the agent: its metrics."""

from pathlib import Path

import pytest

from edge.models.agreement import Agreement
from edge.models.choose import ShadowState
from edge.models.part import ModelsPart
from evaluation.world import settings_in
from tests.edge.agents import agent_of
from tests.edge.builders import SilentCloud, pipeline_of


def test_the_models_are_those_of_the_moment_and_old_versions_leave_no_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, active = agent_of(settings_in(tmp_path)), [("screening-int8", "1.0")]
    part = ModelsPart(agent)
    value = agent.telemetry.registry.get_sample_value

    def info(role: str, version: str) -> float | None:
        labels = {"role": role, "model": "screening-int8", "version": version}
        return value("overread_edge_model_info", labels)

    assert info("active", "1.0") is None
    part.attach(pipeline_of(SilentCloud()))
    agreement = Agreement(studies=3, findings=4, kept=3, kept_share=0.75)
    shadows: list[ShadowState | None] = [ShadowState("1.1", "screening-int8", agreement, ())]
    monkeypatch.setattr(part.live, "active_model", lambda: active[0])
    monkeypatch.setattr(part.live, "shadow_state", lambda: shadows[0])
    assert (info("active", "1.0"), info("shadow", "1.1")) == (1, 1)
    active[0], shadows[0] = ("screening-int8", "1.1"), None
    assert (info("active", "1.0"), info("active", "1.1"), info("shadow", "1.1")) == (None, 1, None)
