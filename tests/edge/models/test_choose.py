"""Promoting a model and going back: what is refused, what is recorded, and kills in between."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import Result

from edge.access import user_name
from edge.audit import Event
from edge.doctor import Level, examine
from edge.models.agreement import LEAST_STUDIES, Compared
from edge.models.choose import models_state, promote, roll_back
from edge.models.errors import NotPromotable, UpdatesOff
from edge.models.fetch import fetch
from edge.models.live import LiveModels
from edge.models.store import SHIPPED, Choice, ModelStep
from edge.run import PARTS, site_of
from models.runtime.artifacts import every
from tests.edge.agents import command
from tests.edge.builders import changed
from tests.edge.models.signed import SMALL, Edge, Signed, edge, offering, signed
from tests.edge.running_agent import PATIENCE_S, PROCESSES

GOOD = Compared(2, 2, 0, 3, 3, 5, 0.1, 0.4, 1.0, 1.0)
ENOUGH = (GOOD,) * LEAST_STUDIES


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return signed(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def fetched(hospital: Signed, tmp_path_factory: pytest.TempPathFactory) -> Edge:
    """An edge that has fetched the small model, which is quickly tried."""
    with offering(hospital, SMALL) as cloud:
        site = edge(tmp_path_factory.mktemp("edge"), cloud.address, hospital.key)
        fetch(site.site, user="agent")
    return site


@pytest.fixture
def site(fetched: Edge, tmp_path: Path) -> Iterator[Edge]:
    """A copy of that edge."""
    shutil.copytree(fetched.root / "state", tmp_path / "state")
    every.cache_clear()
    cloud, key = fetched.settings.cloud.address or "", fetched.settings.models.keys[0]
    yield edge(tmp_path, cloud, key)
    every.cache_clear()


def add(site: Edge, *compared: Compared, active: str = SHIPPED) -> str:
    """Store comparisons of the model in shadow; its version."""
    with site.store() as store:
        version = store.choice().shadow
        assert version
        for number, one in enumerate(compared):
            store.add_compared(version, active, f"{number:032x}", one)
    return version


def test_a_model_that_agrees_is_promoted_and_the_record_says_by_whom(site: Edge) -> None:
    version = add(site, *ENOUGH)
    assert promote(site.site, user="anna") == version
    with site.store() as store:
        choice = store.choice()
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
        (ENOUGH[1:], "19 studies were compared"),
        ((*ENOUGH, *[replace(GOOD, kept=0)] * 2), "40 of 44 findings"),
        ((*ENOUGH, replace(GOOD, added=20)), "findings a study of its own"),
    ],
)
def test_a_model_that_agrees_too_little_is_promoted_by_force_alone(
    compared: tuple[Compared, ...], says: str, site: Edge
) -> None:
    version = add(site, *compared)
    with pytest.raises(NotPromotable, match=says):
        promote(site.site, user="anna")
    with site.store() as store:
        assert store.choice().active == SHIPPED
    assert promote(site.site, user="anna", force=True) == version
    record = site.trail()[-1]
    assert record.fields["forced"] is True
    assert says in "; ".join(record.fields["against"])


def test_what_was_compared_with_another_model_does_not_count(site: Edge) -> None:
    add(site, *ENOUGH, active="another-1")
    with pytest.raises(NotPromotable, match="0 studies were compared"):
        promote(site.site, user="anna")


def test_a_model_that_was_damaged_or_is_not_trusted_any_more_is_not_promoted(site: Edge) -> None:
    version = add(site, *ENOUGH)
    untrusting = changed(site.settings, models__keys=())
    with pytest.raises(NotPromotable, match=r"set models\.keys"):
        promote(site_of(untrusting), user="anna", force=True)
    file = site.models / version / f"{SMALL}.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(NotPromotable, match="has SHA-256"):
        promote(site.site, user="anna", force=True)


def test_going_back_leads_to_the_model_before_and_only_once(site: Edge) -> None:
    """The model that was left is not in shadow again by itself."""
    version = add(site, *ENOUGH)
    with pytest.raises(NotPromotable, match="no model to go back to"):
        roll_back(site.site, user="anna")
    promote(site.site, user="anna")
    assert roll_back(site.site, user="bert") == SHIPPED
    with site.store() as store:
        assert store.choice() == replace(Choice(), changed=store.choice().changed,
                                         changed_by="bert")  # fmt: skip
        package = store.package(version)
    assert package
    assert package.rejected
    record = site.trail()[-1]
    assert (record.event, record.fields["user"]) == (Event.MODEL_ROLLED_BACK, "bert")
    assert (record.fields["version"], record.fields["to"]) == (version, SHIPPED)
    with pytest.raises(NotPromotable, match="no model to go back to"):
        roll_back(site.site, user="bert")


def test_a_model_that_was_rolled_back_is_in_shadow_again_only_if_somebody_says_so(
    hospital: Signed, site: Edge
) -> None:
    version = add(site, *ENOUGH)
    promote(site.site, user="anna")
    roll_back(site.site, user="anna")
    with offering(hospital, SMALL) as cloud:
        settings = changed(site.settings, cloud__address=cloud.address)
        assert not fetch(site_of(settings), user="agent").new
        with site.store() as store:
            assert store.choice().shadow is None
        assert fetch(site_of(settings), user="anna", again=True).new
    with site.store() as store:
        assert store.choice().shadow == version


@pytest.mark.parametrize("fault", ["damaged", "missing", "unsigned", "untrusted"])
def test_an_active_model_that_cannot_be_opened_is_replaced_at_the_start(
    fault: str, site: Edge
) -> None:
    """The agent works on with the model before, and the trail says so."""
    version = add(site, *ENOUGH)
    promote(site.site, user="anna")
    every.cache_clear()
    folder, settings = site.models / version, site.settings
    match fault:
        case "damaged":
            file = folder / f"{SMALL}.onnx"
            file.write_bytes(file.read_bytes()[:-1] + b"x")
        case "missing":
            shutil.rmtree(folder)
        case "unsigned":
            (folder / "manifest.sig").unlink()
        case _:
            settings = changed(settings, models__keys=())
    live = LiveModels(site_of(settings))
    opened = live.open_active()
    assert opened.name == settings.screening_model
    with site.store() as store:
        choice = store.choice()
    assert (choice.active, choice.previous) == (SHIPPED, None)
    record = site.trail()[-1]
    assert record.event == Event.MODEL_REPLACED
    assert record.fields["version"] == version
    assert record.fields["reason"]


def test_the_model_before_is_taken_where_it_was_fetched_too(hospital: Signed, site: Edge) -> None:
    first = add(site, *ENOUGH)
    promote(site.site, user="anna")
    with offering(hospital) as cloud:
        settings = changed(site.settings, cloud__address=cloud.address)
        second = fetch(site_of(settings), user="agent").version
    promote(site.site, user="anna", force=True)
    assert {one.name for one in site.models.iterdir() if one.is_dir()} == {first, second}
    shutil.rmtree(site.models / second)
    every.cache_clear()
    assert LiveModels(site.site).open_active().name == SMALL
    with site.store() as store:
        assert store.choice().active == first


def test_the_doctor_names_the_models_from_the_cloud(site: Edge) -> None:
    version = add(site, *ENOUGH)

    def said() -> list[tuple[Level, str]]:
        return [(c.level, c.text) for c in examine(site.site, PARTS) if version in c.text]

    assert said() == [(Level.OK, f"in shadow: {version}, from the cloud")]
    promote(site.site, user="anna")
    assert said() == [(Level.OK, f"active: {version}, from the cloud")]
    (site.models / version / f"{SMALL}.onnx").unlink()
    ((level, text),) = said()
    assert level is Level.WRONG
    assert "cannot be used" in text


def change_until(site: Edge, what: str, crash: tuple[ModelStep, bool]) -> None:
    """Promote or roll back in this process, which kills itself at a step."""

    def on_step(step: ModelStep, durable: bool) -> None:
        if (step, durable) == crash:
            os.kill(os.getpid(), signal.SIGKILL)

    change = promote if what == "promote" else roll_back
    change(site.site, user="anna", on_step=on_step)


@pytest.mark.parametrize(
    ("what", "step"), [("promote", ModelStep.PROMOTED), ("roll back", ModelStep.ROLLED_BACK)]
)
def test_a_kill_leaves_the_old_choice_or_the_new_one_with_its_record(
    what: str, step: ModelStep, site: Edge
) -> None:
    version = add(site, *ENOUGH)
    if what == "roll back":
        promote(site.site, user="anna")
    for durable in (False, True):
        with site.store() as store:
            before = store.choice().active
        records = len(site.trail())
        process = PROCESSES.Process(target=change_until, args=(site, what, (step, durable)))
        process.start()
        process.join(PATIENCE_S)
        assert process.exitcode == -signal.SIGKILL
        with site.store() as store:
            changed = store.choice().active != before
        assert changed == durable
        assert len(site.trail()) == records + durable
    with site.store() as store:
        assert store.choice().active == (version if what == "promote" else SHIPPED)


def run(site: Edge, *arguments: str) -> Result:
    """Run a command with the settings of a site."""
    cloud, models = site.settings.cloud, site.settings.models
    lines = [f'cloud.address = "{cloud.address}"', f'models.folder = "{models.folder}"']
    return command(
        site.root, "models", *arguments, lines=[*lines, f'models.keys = ["{models.keys[0]}"]']
    )


def test_the_commands_show_promote_and_roll_back(site: Edge) -> None:
    version = add(site, GOOD, GOOD)
    shown = json.loads(run(site, "list", "--json").stdout)
    assert (shown["active"], shown["previous"], shown["shadow"]) == (
        "screening-int8", None, version,
    )  # fmt: skip
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
