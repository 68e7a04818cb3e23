"""The models on the status page: what it shows, and who promotes and rolls back there."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge.audit import Event
from edge.models.part import ModelsPart
from tests.edge.builders import SilentCloud, pipeline_of
from tests.edge.models.signed import ENOUGH, GOOD, Edge
from tests.edge.running_agent import agent_of
from tests.edge.status.site import Site, Visit, visiting


@pytest.fixture
def visit(site: Edge) -> Iterator[Visit]:
    """Somebody at the page of a site; nobody has promoted anything yet."""
    part = ModelsPart(agent_of(site.settings))
    part.attach(pipeline_of(SilentCloud()))
    with visiting(Site(site.root).app(panels=part.panels())) as visit:
        visit.log_in()
        yield visit


def test_versions_and_agreement_are_shown(site: Edge, visit: Visit) -> None:
    version = site.add(GOOD, replace(GOOD, kept=1))
    text = visit.get("/").text
    for words in (version, "screening-int8 (shipped)", "2 of 20 studies compared", "3 of 4 (75 %)",
                  "median 0.10", "3 of 4 findings", "expected 20"):  # fmt: skip
        assert words in text
    assert "/models/promote" not in text
    assert "/models/rollback" not in text


def test_a_person_promotes_and_rolls_back_and_the_trail_has_the_name(
    site: Edge, visit: Visit
) -> None:
    version = site.add(*ENOUGH)
    assert "/models/promote" in visit.get("/").text
    done = visit.post("/models/promote", {"token": visit.token("/"), "version": version})
    assert (done.status_code, done.headers["location"]) == (303, "/?note=models.promote")
    text = visit.get("/?note=models.promote").text
    assert "reads from the next study on" in text
    assert "/models/rollback" in text
    record = site.trail()[-1]
    assert record.event == Event.MODEL_PROMOTED
    assert record.fields["user"] == "operator"
    assert record.fields["forced"] is False
    done = visit.post("/models/rollback", {"token": visit.token("/")})
    assert done.headers["location"] == "/?note=models.rollback"
    assert site.trail()[-1].event == Event.MODEL_ROLLED_BACK
    assert site.trail()[-1].fields["user"] == record.fields["user"]


def test_an_agent_whose_model_never_changes_has_no_such_section(tmp_path: Path) -> None:
    with visiting(Site(tmp_path).open_app()) as visit:
        assert 'id="updates"' not in visit.get("/").text
