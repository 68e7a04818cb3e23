"""Studies in the inbox that belong to another user, as a program without rights meets them."""

import encodings.cp437  # noqa: F401 - numpy needs it, and not every user may read Python
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edge.access import obstacle
from tests.edge.agent.test_adopt import work
from tests.edge.builders import Box, put
from tests.edge.running_agent import command, statuses, work_off
from tests.edge.test_doctor import doctor, wrong
from tests.edge.test_queue import shown

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
AGENT, GROUP = 65533, 65532


@pytest.fixture
def root() -> Iterator[Path]:
    """A machine with an inbox for a group, a study of root in it, and the agent's user acting."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    os.chown(top, AGENT, GROUP)
    (top / "inbox").mkdir()
    os.chown(top / "inbox", AGENT, GROUP)
    (top / "inbox").chmod(0o2770)
    put(top / "inbox", "mine")  # folders 0755, files 0644, like `cp -r` by root
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(GROUP)
    os.seteuid(AGENT)
    yield top
    os.seteuid(0)
    os.setegid(0)
    os.setgroups(groups)
    shutil.rmtree(top)


def as_root(path: Path, mode: int) -> None:
    os.seteuid(0)
    path.chmod(mode)
    os.seteuid(AGENT)


def test_a_study_that_the_agent_may_not_move_waits_and_is_taken_once_its_mode_is_right(
    root: Path,
) -> None:
    """The log says whose it is and what it needs; no restart, no claim that is left half."""
    box = Box(root / "inbox")
    with capture_logs() as logs:
        assert box.inbox.complete() == []
        assert box.inbox.complete() == []
        assert box.inbox.blocked == 1
    (line,) = logs
    assert line["event"] == "studies in the inbox may not be taken"
    (reason,) = line["reasons"]
    assert "user root" in reason
    assert "mode 2755" in reason or "mode 0755" in reason
    assert "chmod -R ug+rwX" in reason
    as_root(root / "inbox" / "mine", 0o2775)
    box.clock.sleep(100.0)
    box.inbox.complete()
    box.clock.sleep(100.0)
    assert box.names() == ["mine"]
    assert box.inbox.blocked == 0
    work_off(root)
    assert statuses(root) == {"mine": "final"}


@pytest.mark.parametrize(
    ("inside", "mode", "what"),
    [("0.dcm", 0o600, "a file"), (".", 0o700, "a folder"), (".", 0o2755, "a folder")],
)
def test_queue_and_doctor_name_a_study_that_may_not_be_taken(
    root: Path, inside: str, mode: int, what: str
) -> None:
    as_root(root / "inbox" / "mine", 0o2775)
    as_root(root / "inbox" / "mine" / inside, mode)
    (one,) = shown(root)["studies"]
    assert one["state"] == "blocked"
    assert f"{what} of user root" in one["reason"]
    checked = doctor(root)
    assert [text for name, text in wrong(checked) if name == "inbox"] == [
        f"1 studies wait because of {one['reason']}"
    ]


def test_queue_and_doctor_tell_root_that_a_study_may_be_blocked_for_the_agent(root: Path) -> None:
    """Root may move and read everything."""
    as_root(root / "inbox" / "mine", 0o2755)
    work(root)
    (one,) = shown(root)["studies"]
    assert one["state"] == "blocked"
    assert command(root, "queue").stderr == ""
    os.seteuid(0)
    (one,) = shown(root)["studies"]
    assert one["state"] == "arriving"
    note = f"{root / 'state'} belongs to {AGENT}: run this as that user"
    for arguments in (["queue"], ["queue", "--json"]):
        said = command(root, *arguments).stderr
        assert said.startswith(f"note: {note}")
        assert "whether a study is blocked depends on the user" in said
    checked = doctor(root)
    assert [text[: len(note)] for level, text in checked["access"] if level == "note"] == [note]


def test_a_sticky_inbox_and_one_that_may_not_be_written_are_named(root: Path) -> None:
    as_root(root / "inbox" / "mine", 0o2775)
    assert obstacle(root / "inbox" / "mine") == ""
    os.seteuid(0)
    os.chown(root / "inbox", 0, GROUP)
    os.seteuid(AGENT)
    as_root(root / "inbox", stat.S_ISVTX | 0o2770)
    assert "sticky bit" in obstacle(root / "inbox" / "mine")
    as_root(root / "inbox", 0o2755)
    assert "may not write" in obstacle(root / "inbox" / "mine")


@pytest.mark.parametrize(
    "name", ["outbox", "state", "state/work", "state/done", "state/quarantine"]
)
def test_a_folder_of_the_agent_that_it_may_not_write_is_an_error_of_the_start(
    root: Path, name: str
) -> None:
    """Although it may open the lock file and the database that an earlier start left in it."""
    work(root)
    os.seteuid(0)
    os.chown(root / name, 0, 0)
    (root / name).chmod(0o755)
    os.seteuid(AGENT)
    with pytest.raises(PermissionError) as raised:
        work(root)
    assert raised.value.filename == str(root / name)
    result = command(root, "run", status=1)
    setting = "state_dir" if name.startswith("state") else name
    said = f"PermissionError: {setting} = {root / name.partition('/')[0]}: [Errno 13] Permission"
    assert f"{said} denied: '{root / name}'" in result.stderr
    assert f"{root / name} belongs to user root, with mode 0755, and this is" in result.stderr


@pytest.mark.parametrize("file", ["inbox/.overread.lock", "state/spool.sqlite3"])
def test_a_file_that_another_user_left_is_named_with_its_owner(root: Path, file: str) -> None:
    """As root leaves them, who has started the agent once to try it."""
    (root / "state").mkdir()
    os.seteuid(0)
    (root / file).touch(mode=0o600)
    os.seteuid(AGENT)
    result = command(root, "run", status=1)
    assert f"{root / file} belongs to user root, with mode 0600, and this is" in result.stderr
