"""``overread-edge doctor``: checks all that the agent needs on this machine, and says what to do.

It changes nothing but the choice of the inference engine, which it keeps as every start does, and
may run beside the agent. Run it as the agent's user.
"""

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain

from edge.agent.adopt import strays
from edge.checks import Checked, Results, existing, folder_problem, mode, note, ok, secrets, wrong
from edge.database import RESTART, InvalidDatabase, OlderVersion, copies
from edge.errors import EdgeError
from edge.folders import DATABASE, AgentFolders, is_running, other_user
from edge.link.channel import DIAGNOSE_S, open_channel, start_health_check
from edge.link.link import CONNECT_S
from edge.part import Part
from edge.queue import BLOCKED, arriving, is_here, is_provisional
from edge.reader import EdgeReader, open_configured
from edge.rules.rule import load_rules
from edge.settings.core import MB, EdgeSettings
from edge.site import Site
from edge.store.record import Step
from edge.store.repair import damaged_databases
from edge.store.studies import StudyStore
from models.runtime.errors import ModelError
from process.tls import diagnose, replicas_of

RESERVE_BYTES = 1_000_000_000
"""Free disk space that studies and reports need beside the pending reads."""


def examine(site: Site, parts: Iterable[type[Part]]) -> list[Checked]:
    """Check all that the agent and its parts need; a check that fails is a result too."""
    settings, folders = site.settings, site.folders
    checks: list[tuple[str, Callable[[], Results]]] = [
        ("settings", lambda: _settings(settings, folders)),
        ("folders", lambda: _folders(folders)),
        ("access", lambda: _access(folders, settings)),
        ("disk", lambda: _disk(folders, settings)),
        ("database", lambda: _database(site)),
        ("rules", lambda: _rules(settings)),
        ("model", lambda: _model(settings)),
        ("cloud", lambda: _clouds(settings)),
        *((part.name, partial(part.checks, site)) for part in parts),
    ]
    found: list[Checked] = []
    for what, check in checks:
        try:
            found += check()
        except OlderVersion as error:
            found.append(note(what, str(error)))
        except (EdgeError, ModelError, OSError) as error:
            found.append(wrong(what, f"{type(error).__name__}: {error}"))
    return found


def _settings(settings: EdgeSettings, folders: AgentFolders) -> Results:
    source = settings.file or "defaults and environment, no file"
    yield ok("settings", f"from {source}")
    runs = is_running(folders)
    yield ok("agent", "runs") if runs else note("agent", "does not run")


def _rules(settings: EdgeSettings) -> Results:
    if settings.rules is not None:
        count = len(load_rules(settings.rules).rules)
        yield ok("rules", f"{count} in {settings.rules}")


def _folders(folders: AgentFolders) -> Results:
    named = {"inbox": folders.inbox, "outbox": folders.outbox, "state_dir": folders.state}
    for name, folder in named.items():
        if not folder.exists():
            yield note(name, f"{folder} is missing: the agent makes it at its start")
        elif problem := folder_problem(folder):
            may_write = os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
            yield wrong(name, problem if may_write else f"{problem}: give it to the agent's user")
        else:
            yield ok(name, f"{folder} can be written")
    blocked = [one.reason for one in arriving(folders.inbox, 0.0) if one.state == BLOCKED]
    for reason in sorted(set(blocked)):
        count = blocked.count(reason)
        yield wrong("inbox", f"{count} studies wait because of {reason}")
    existing = [folder for folder in (folders.inbox, folders.state) if folder.exists()]
    if len({folder.stat().st_dev for folder in existing}) > 1:
        text = "another filesystem than state_dir: studies are copied, which takes longer"
        yield note("inbox", text)


def _access(folders: AgentFolders, settings: EdgeSettings) -> Results:
    """Find what other users can read; the agent closes its own folders at its start."""
    private = [folders.state, folders.work, folders.done, folders.quarantine]
    private += [folders.trail, folders.viewer]
    private += [*folders.state.glob(f"{DATABASE}*"), *folders.trail.glob("*")]
    open_to_all = [(path, 0o077) for path in private] + [(folders.outbox, 0o007)]
    wide = [path for path, bits in open_to_all if mode(path) & bits]
    for path in wide:
        yield wrong("access", f"{path} can be read by others: chmod go-rwx, or start the agent")
    if mode(folders.inbox) & 0o007:
        text = f"{folders.inbox} is open to every user: chmod 2770, with a group for the sender"
        yield wrong("access", text)
    reports = [p for p in folders.outbox.glob("*") if p.is_dir() and mode(p) & 0o007]
    if reports:
        text = f"{len(reports)} reports can be read by every user: chmod -R o-rwx {folders.outbox}"
        yield wrong("access", text)
    if mode(folders.outbox) & stat.S_ISGID:
        group = folders.outbox.stat().st_gid
        if os.geteuid() != 0 and group not in (os.getegid(), *os.getgroups()):
            text = f"the agent's user is not in group {group} of {folders.outbox}: add it"
            yield wrong("access", text)
    if text := other_user(folders):
        yield note("access", text)
    yield from secrets("access", settings.cloud.tls.key)
    if not wide:
        yield ok("access", "studies and database are closed to other users")


def _disk(folders: AgentFolders, settings: EdgeSettings) -> Results:
    wanted = settings.pending.max_mb * MB + RESERVE_BYTES
    for name, folder in (("state_dir", folders.state), ("outbox", folders.outbox)):
        free = shutil.disk_usage(existing(folder)).free
        expected = wanted if name == "state_dir" else RESERVE_BYTES
        text = f"{free / 1e9:.1f} GB free for {name}, expected {expected / 1e9:.1f} GB"
        hint = "; make room, set retention.studies_gb, or decrease pending.max_mb"
        yield ok("disk", text) if free >= expected else wrong("disk", text + hint)


def _database(site: Site) -> Results:
    folders, path = site.folders, site.database
    for aside in damaged_databases(path):
        text = f"{aside} was damaged and set aside; delete it when it is not needed any more"
        yield note("database", text)
    for copy in copies(path):
        text = f"{copy} is from before an upgrade; delete it when the new version has proved itself"
        yield note("database", text)
    if not path.exists():
        yield note("database", f"{path} is missing: the agent makes it at its start")
        return
    if missing := [f for f in (folders.work, folders.done, folders.quarantine) if not f.is_dir()]:
        text = f"{' and '.join(map(str, missing))} missing: start the agent, which makes it"
        yield wrong("studies", text)
        return
    try:
        opened = StudyStore(path, site.schema)
    except InvalidDatabase as error:
        yield wrong("database", str(error))
        return
    with opened as store:
        if problem := store.problem():
            yield wrong("database", f"{path} is damaged ({problem}): {RESTART}")
            return
        yield ok("database", f"{path} is sound")
        if unknown := strays(folders, store):
            text = f"{len(unknown)} studies in the folders have no row: restart the agent"
            yield wrong("studies", text)
        if refused := [r for r in store.at(Step.QUARANTINED) if is_here(r, folders)]:
            yield note("studies", f"{len(refused)} are refused: overread-edge queue shows why")
        pending, done = store.pending.keys(), store.at(Step.DONE)
        waiting = (one for one in done if one.id not in pending and is_provisional(one, folders))
        if names := [one.report_name for one in waiting]:
            text = (
                f"provisional, but nothing is pending: overread-edge requeue {' or '.join(names)}"
            )
            yield wrong("reports", text)


def _model(settings: EdgeSettings) -> Results:
    screener = open_configured(settings)
    yield ok("model", EdgeReader.of(screener).label)
    if screener.signed_by:
        yield ok("model", f"signed by {screener.signed_by}")
    else:
        yield note("model", "models.keys is not set: hashes are checked, and no signature")


def _clouds(settings: EdgeSettings) -> Results:
    if settings.cloud.address is None:
        yield note("cloud", "not set: no second reading")
        return
    if settings.cloud.insecure and settings.cloud.remote and settings.cloud.tls.ca is None:
        text = "ROIs travel unencrypted: set cloud.tls.ca, unless the network itself is protected"
        yield note("cloud", text)
    problems = settings.cloud.tls.problems() if settings.cloud.tls.ca is not None else []
    for problem in problems:
        yield wrong("cloud", problem)
    if problems:
        return
    for warning in settings.cloud.tls.warnings():
        yield note("cloud", warning)
    clouds = filter(None, (settings.cloud.address, settings.cloud.fallback))
    for address in chain.from_iterable(map(replicas_of, clouds)):
        began_s = time.monotonic()
        with open_channel(address, settings) as channel:
            fault = start_health_check(channel, CONNECT_S).fault()
        took_s = time.monotonic() - began_s
        if fault is None:
            text = (
                f"{address} answers in {took_s:.2f} s, encryption: {settings.cloud.tls.encryption}"
            )
            yield ok("cloud", text)
        else:
            reason = (
                diagnose(address, settings.cloud.tls, DIAGNOSE_S) or f"{fault.kind}: {fault.reason}"
            )
            yield wrong("cloud", f"{address}: {reason}")
