"""Promoting a model and going back: what is refused, what is recorded, and kills in between."""

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from typer.testing import Result

from edge.access import user_name
from edge.audit import Event
from edge.checks import Level
from edge.database import transaction
from edge.doctor import examine
from edge.models import store as models
from edge.models.agreement import Compared
from edge.models.fetch import fetch
from edge.models.folder import NotPromotable, UpdatesOff
from edge.models.live import LiveModels
from edge.models.store import SHIPPED, Choice, models_state, promote, roll_back
from edge.run import PARTS, site_of
from models.runtime.artifacts import every
from tests.edge.builders import changed
from tests.edge.models.signed import ENOUGH, GOOD, SMALL, Edge, Signed, offering
from tests.edge.running_agent import PATIENCE_S, PROCESSES, command


def test_a_model_that_agrees_is_promoted_and_the_record_says_by_whom(site: Edge) -> None:
    version = site.add(*ENOUGH)
    assert promote(site.site, user="anna") == version
    choice = site.choice
    assert (choice.active, choice.previous, choice.shadow) == (version, SHIPPED, None)
    record = site.trail()[-1]
    assert record.event == Event.MODEL_PROMOTED
    fields = {k: record.fields[k] for k in ("user", "forced", "studies", "kept", "findings")}
    assert fields == {"user": "anna", "forced": False, "studies": 20, "kept": 40, "findings": 40}
    assert len(record.fields["sha256"]) == 64


@pytest.mark.parametrize(
    ("compared", "says"),
    [
        ((), "0 studies were compared, expected 20"),
        ((*ENOUGH, *[replace(GOOD, kept=0)] * 2), "40 of 44 findings"),
    ],
)
def test_a_model_that_agrees_too_little_is_promoted_by_force_alone(
    compared: tuple[Compared, ...], says: str, site: Edge
) -> None:
    version = site.add(*compared)
    with pytest.raises(NotPromotable, match=says):
        promote(site.site, user="anna")
    assert site.choice.active == SHIPPED
    assert promote(site.site, user="anna", force=True) == version
    record = site.trail()[-1]
    assert record.fields["forced"] is True
    assert says in "; ".join(record.fields["against"])


def test_what_was_compared_with_another_model_does_not_count(site: Edge) -> None:
    site.add(*ENOUGH, active="another-1")
    with pytest.raises(NotPromotable, match="0 studies were compared"):
        promote(site.site, user="anna")


def test_a_model_that_was_damaged_or_is_not_trusted_any_more_is_not_promoted(site: Edge) -> None:
    version = site.add(*ENOUGH)
    untrusting = changed(site.settings, models__keys=())
    with pytest.raises(NotPromotable, match=r"set models\.keys"):
        promote(site_of(untrusting), user="anna", force=True)
    site.damage(version)
    with pytest.raises(NotPromotable, match="has SHA-256"):
        promote(site.site, user="anna", force=True)


def test_going_back_leads_to_the_model_before_and_only_once(site: Edge) -> None:
    version = site.add(*ENOUGH)
    with pytest.raises(NotPromotable, match="no model to go back to"):
        roll_back(site.site, user="anna")
    promote(site.site, user="anna")
    assert roll_back(site.site, user="bert") == SHIPPED
    assert site.choice == replace(Choice(), changed=site.choice.changed, changed_by="bert")
    record = site.trail()[-1]
    assert record.event == Event.MODEL_ROLLED_BACK
    assert record.fields == {"user": "bert", "version": version, "to": SHIPPED}
    with pytest.raises(NotPromotable, match="no model to go back to"):
        roll_back(site.site, user="bert")


def test_the_way_back_to_the_shipped_model_stays(site: Edge) -> None:
    """Also where the model that was promoted last cannot be opened."""
    with site.store() as store:
        store.choose(Choice("b-2", previous="a-1"), "anna")
        store.replace_active("a-1", "DamagedArtifact: b-2")
    assert (site.choice.active, site.choice.previous) == ("a-1", SHIPPED)
    assert roll_back(site.site, user="anna") == SHIPPED
    assert (site.choice.active, site.choice.previous) == (SHIPPED, None)


def test_a_model_that_was_rolled_back_is_in_shadow_again_only_if_somebody_says_so(
    hospital: Signed, site: Edge
) -> None:
    version = site.add(*ENOUGH)
    promote(site.site, user="anna")
    roll_back(site.site, user="anna")
    with offering(hospital, SMALL) as cloud:
        assert not fetch(site.at(cloud.address), user="agent").new
        assert site.choice.shadow is None
        assert fetch(site.at(cloud.address), user="anna", again=True).new
    assert site.choice.shadow == version


@pytest.mark.parametrize("fault", ["damaged", "missing", "untrusted"])
def test_an_active_model_that_cannot_be_opened_is_replaced_at_the_start(
    fault: str, site: Edge
) -> None:
    """The agent works on with the model before, and the trail says so."""
    version, settings = site.add(*ENOUGH), site.settings
    promote(site.site, user="anna")
    every.cache_clear()
    match fault:
        case "damaged":
            site.damage(version)
        case "missing":
            shutil.rmtree(site.models / version)
        case _:
            settings = changed(settings, models__keys=())
    assert LiveModels(site_of(settings)).open_active().name == settings.screening_model
    assert (site.choice.active, site.choice.previous) == (SHIPPED, None)
    record = site.trail()[-1]
    assert record.event == Event.MODEL_REPLACED
    assert record.fields["version"] == version
    assert record.fields["reason"]


def test_the_model_before_is_taken_where_it_was_fetched_too(hospital: Signed, site: Edge) -> None:
    first = site.add(*ENOUGH)
    promote(site.site, user="anna")
    with offering(hospital) as cloud:
        second = fetch(site.at(cloud.address), user="agent").version
    promote(site.site, user="anna", force=True)
    assert {one.name for one in site.models.iterdir() if one.is_dir()} == {first, second}
    shutil.rmtree(site.models / second)
    every.cache_clear()
    assert LiveModels(site.site).open_active().name == SMALL
    assert site.choice.active == first


def test_the_doctor_names_the_models_from_the_cloud(site: Edge) -> None:
    version = site.add(*ENOUGH)

    def said() -> list[tuple[Level, str]]:
        return [(c.level, c.text) for c in examine(site.site, PARTS) if version in c.text]

    assert said() == [(Level.OK, f"in shadow: {version}, from the cloud")]
    promote(site.site, user="anna")
    assert said() == [(Level.OK, f"active: {version}, from the cloud")]
    (site.models / version / f"{SMALL}.onnx").unlink()
    ((level, text),) = said()
    assert level is Level.WRONG
    assert "cannot be used" in text


def change_until(site: Edge, what: str, durable: bool) -> None:
    """Promote or roll back in this process, which kills itself before or after it is durable."""

    @contextmanager
    def killing(database: sqlite3.Connection) -> Iterator[None]:
        with transaction(database):
            yield
            if not durable:
                os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    models.transaction = killing  # type: ignore[attr-defined]
    change = promote if what == "promote" else roll_back
    change(site.site, user="anna")


@pytest.mark.parametrize("what", ["promote", "roll back"])
def test_a_kill_leaves_the_old_choice_or_the_new_one_with_its_record(what: str, site: Edge) -> None:
    version = site.add(*ENOUGH)
    if what == "roll back":
        promote(site.site, user="anna")
    for durable in (False, True):
        before, records = site.choice.active, len(site.trail())
        process = PROCESSES.Process(target=change_until, args=(site, what, durable))
        process.start()
        process.join(PATIENCE_S)
        assert process.exitcode == -signal.SIGKILL
        assert (site.choice.active != before) == durable
        assert len(site.trail()) == records + durable
    assert site.choice.active == (version if what == "promote" else SHIPPED)


def run(site: Edge, *arguments: str) -> Result:
    """Run a command with the settings of a site."""
    cloud, given = site.settings.cloud, site.settings.models
    lines = [f'cloud.address = "{cloud.address}"', f'models.folder = "{given.folder}"']
    return command(
        site.root, "models", *arguments, lines=[*lines, f'models.keys = ["{given.keys[0]}"]']
    )


def test_the_commands_show_promote_and_roll_back(site: Edge) -> None:
    version = site.add(GOOD, GOOD)
    shown = json.loads(run(site, "list", "--json").stdout)
    expected = {"active": "screening-int8", "previous": None, "shadow": version}
    assert shown.items() >= expected.items()
    assert shown["agreement"]["kept"] == 4
    assert shown["against_promotion"] == ["2 studies were compared, expected 20"]
    assert "2 of 20" in run(site, "list").stdout
    refused = run(site, "promote")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("NotPromotable: 2 studies were compared")
    assert run(site, "promote", "--force").stdout == f"active: {version}\n"
    assert site.trail()[-1].fields["user"] == user_name(os.geteuid())
    assert run(site, "rollback").stdout == "active: screening-int8\n"
    assert run(site, "rollback").exit_code == 1
    away = run(site, "fetch")
    assert away.exit_code == 1
    assert away.stderr.splitlines()[-1].startswith("FetchFailed: ")


def test_without_an_agent_s_database_the_commands_say_what_to_do(site: Edge) -> None:
    (site.folders.state / "spool.sqlite3").unlink()
    with pytest.raises(UpdatesOff, match="start the agent"):
        models_state(site.site)
