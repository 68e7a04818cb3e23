"""The models on the status page: what it shows, and who promotes and rolls back there."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge.audit import Event
from edge.models.agreement import LEAST_STUDIES, Compared
from edge.models.fetch import fetch
from edge.models.part import ModelsPart
from edge.models.store import SHIPPED
from tests.edge.agents import agent_of
from tests.edge.builders import SilentCloud, pipeline_of
from tests.edge.models.signed import SMALL, Edge, edge, offering, signed
from tests.edge.status.site import Site, Visit, visiting

GOOD = Compared(2, 2, 0, 3, 3, 5, 0.1, 0.4, 1.0, 1.0)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Edge:
    """An edge with the small model in shadow."""
    root = tmp_path_factory.mktemp("site")
    hospital = signed(tmp_path_factory.mktemp("hospital"))
    with offering(hospital, SMALL) as cloud:
        site = edge(root, cloud.address, hospital.key)
        fetch(site.site, user="agent")
    return site


@pytest.fixture
def page(fetched: Edge) -> Iterator[tuple[Edge, Visit]]:
    """The page of that site; nobody has promoted anything yet."""
    with fetched.store() as store:
        database = store.database
        version = store.packages()[0].version
        database.execute("DELETE FROM model_compared")
        database.execute(
            "INSERT OR REPLACE INTO model_choice VALUES (1, '', NULL, ?, '2026-11-27T08:00', 'x')",
            (version,),
        )
    site = Site(fetched.root)
    part = ModelsPart(agent_of(fetched.settings))
    part.attach(pipeline_of(SilentCloud()))
    with visiting(site.app(panels=part.panels())) as visit:
        visit.log_in()
        yield fetched, visit


def add(site: Edge, *compared: Compared) -> str:
    with site.store() as store:
        version = store.packages()[0].version
        for number, one in enumerate(compared):
            store.add_compared(version, SHIPPED, f"{number:032x}", one)
    return version


def test_versions_and_agreement_are_shown(page: tuple[Edge, Visit]) -> None:
    site, visit = page
    version = add(site, GOOD, replace(GOOD, kept=1))
    text = visit.get("/").text
    for words in (version, "screening-int8 (shipped)", "2 of 20 studies compared", "3 of 4 (75 %)",
                  "median 0.10", "3 of 4 findings", "expected 20"):  # fmt: skip
        assert words in text
    assert "/models/promote" not in text
    assert "/models/rollback" not in text


def test_a_person_promotes_and_rolls_back_and_the_trail_has_the_name(
    page: tuple[Edge, Visit],
) -> None:
    site, visit = page
    version = add(site, *[GOOD] * LEAST_STUDIES)
    assert "/models/promote" in visit.get("/").text
    done = visit.post("/models/promote", {"token": visit.token("/"), "version": version})
    assert (done.status_code, done.headers["location"]) == (303, "/?note=models.promote")
    text = visit.get("/?note=models.promote").text
    assert "reads from the next study on" in text
    assert "/models/rollback" in text
    record = site.trail()[-1]
    assert record.event == Event.MODEL_PROMOTED
    assert record.fields["user"]
    assert record.fields["forced"] is False
    done = visit.post("/models/rollback", {"token": visit.token("/")})
    assert done.headers["location"] == "/?note=models.rollback"
    assert site.trail()[-1].event == Event.MODEL_ROLLED_BACK
    assert site.trail()[-1].fields["user"] == record.fields["user"]


def test_a_model_that_agrees_too_little_is_not_promoted_on_the_page(
    page: tuple[Edge, Visit],
) -> None:
    site, visit = page
    version = add(site, GOOD)
    done = visit.post("/models/promote", {"token": visit.token("/"), "version": version})
    assert done.status_code == 409
    assert "1 studies were compared" in done.text


@pytest.mark.parametrize("path", ["/models/promote", "/models/rollback"])
def test_another_page_cannot_change_the_model(path: str, page: tuple[Edge, Visit]) -> None:
    site, visit = page
    version = add(site, *[GOOD] * LEAST_STUDIES)
    assert visit.post(path, {"token": "x", "version": version}).status_code == 403
    form = {"token": visit.token("/"), "version": version}
    assert visit.post(path, form, origin="https://elsewhere.example").status_code == 403
    assert visit.get(path).status_code in (404, 405)
    with site.store() as store:
        assert store.choice().active == SHIPPED


def test_an_agent_whose_model_never_changes_has_no_such_section(tmp_path: Path) -> None:
    with visiting(Site(tmp_path).open_app()) as visit:
        assert 'id="updates"' not in visit.get("/").text
