"""The commands of docs/install.md, as written: install, upgrade twice, back, restore, uninstall.

The page's own blocks run in bash, below a folder instead of `/`. Real agents run; systemd, users
and pip are replaced by a few lines of shell. Each version is a repository with another migration.
"""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from imaging.dicom.writer import write_series
from tests.conftest import Draw
from tests.overread.test_api import SPEC

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "install.md").read_text()
PARTS = ("process", "protos", "imaging", "models", "edge", "cloud", "overread", "deploy")
MIGRATIONS = ROOT / "edge" / "drift" / "observe.py"
PIP = """#!/bin/sh
for name in edge models; do
    printf '#!/bin/sh\\nPYTHONPATH=%s exec %s -P -m %s "$@"\\n' "$PWD" "$PYTHON" $name \\
        > venv/bin/overread-$name
    chmod +x venv/bin/overread-$name
done
"""
"""Installs programs that run the repository's code in this environment."""
SHELL = """
set -eo pipefail
for absent in apt useradd userdel chown chgrp journalctl; do eval "$absent() { :; }"; done
install() { command install $(sed 's/-[og] overread//g; s/-o root//' <<< "$*"); }
runuser() { shift 3; "$@"; }
python3() { mkdir -p "$3/bin"; printf '%s' "$PIP" > "$3/bin/pip"; chmod +x "$3/bin/pip"; }
end() { kill "$1"; tail --pid="$1" -f /dev/null; }
begin() {
    : > "$ROOT/log"
    $(sed -n "s|^ExecStart=||p" "$ROOT/etc/systemd/system/overread-edge.service" |
        sed "s| /| $ROOT/|g; s|^/|$ROOT/|") > /dev/null 2> "$ROOT/log" &
    echo $! > "$ROOT/pid"
    until grep -q "agent started" "$ROOT/log"; do kill -0 $!; sleep 0.05; done
}
systemctl() {
    case "$*" in
        "stop "*|"disable "*) end "$(cat "$ROOT/pid")" ;;
        "start "*|"enable "*) begin ;;
    esac
}
"""


@dataclass
class Machine:
    """A machine whose `/` is a folder."""

    root: Path
    version: str = "v0.1.0"

    def run(self, beginning: str, *, status: int = 0, **replaced: str) -> str:
        """The output of the page's first block that begins so."""
        return self.shell(block(beginning), status, **replaced)

    def shell(self, text: str, status: int = 0, **replaced: str) -> str:
        for old, new in replaced.items():
            text = text.replace(old, new)
        text = re.sub(r"(?<![\w$}])/(opt|etc|var|srv|backup)\b", rf"{self.root}/\1", text)
        names = {"ROOT": self.root, "PYTHON": sys.executable, "PIP": PIP, "VERSION": self.version}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("OVERREAD_")}
        values = {"HOME": self.root / "home", **names}
        done = subprocess.run(
            ["bash", "-c", SHELL + text], cwd=self.root, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=kept | {name: str(value) for name, value in values.items()},
        )  # fmt: skip
        assert done.returncode == status, done.stdout
        return done.stdout

    @property
    def state(self) -> Path:
        return self.root / "var" / "lib" / "overread" / "state"

    @property
    def reports(self) -> set[str]:
        found = (self.root / "srv" / "overread" / "outbox").glob("*/report.json")
        return {path.parent.name for path in found}

    def database(self) -> int:
        with closing(sqlite3.connect(self.state / "spool.sqlite3")) as database:
            return int(database.execute("PRAGMA user_version").fetchone()[0])

    def read(self, study: Path, name: str) -> None:
        """Have a study read through the inbox, with the commands of the page."""
        text = block("/opt/overread/current/venv/bin/overread-edge screen")
        inbox = text[text.index("cp -r") :]
        self.shell(inbox, **{"/path/to/study": str(study), "inbox/try": f"inbox/{name}"})
        until = time.monotonic() + 300
        while name not in self.reports or any((self.state / "work").iterdir()):
            assert time.monotonic() < until, (self.root / "log").read_text()
            time.sleep(0.05)


def block(beginning: str) -> str:
    """The first block of code of the page that begins so."""
    found = re.findall(r"\n\n((?: {4}.*\n|\n(?= {4}))+)", PAGE)
    return next(one for one in map(textwrap.dedent, found) if one.startswith(beginning))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """With a repository of three versions; what still runs at the end is killed."""
    repository = tmp_path / "repository"
    for name in PARTS:
        shutil.copytree(ROOT / name, repository / name, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "constraints.txt", repository)
    names = {
        f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }

    def git(*words: str) -> None:
        command = ("git", "-c", "init.defaultBranch=main", "-C", str(repository), *words)
        subprocess.run(command, check=True, capture_output=True, env=os.environ | names)

    git("init")
    file = repository / MIGRATIONS.relative_to(ROOT)
    for number, tag in enumerate(("v0.1.0", "v0.2.0", "v0.3.0")):
        if number:
            text = f'MIGRATIONS += (Migration({900 + number}, "CREATE TABLE n{number} (x);"),)\n'
            file.write_text(file.read_text() + text)
        git("add", "--all")
        git("commit", "--message", tag)
        git("tag", tag)
    for name in ("home", "etc/systemd/system", "var/lib", "srv", "opt"):
        (tmp_path / name).mkdir(parents=True)
    yield Machine(tmp_path)
    with suppress(OSError, ValueError):
        os.kill(int((tmp_path / "pid").read_text()), 9)


DOCTOR = "cd /tmp\nrunuser"


@pytest.mark.long
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_install_upgrade_twice_back_restore_uninstall(
    machine: Machine, drawn: Draw, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    write_series(drawn(SPEC).volume, study, seed=SPEC.seed)
    tags = ["v0.1.0", "v0.2.0", "v0.3.0"]
    own = {"https://git.example.org/overread.git": str(machine.root / "repository")}
    # install
    assert "screening-int8" in machine.run("REPOSITORY=", **own)
    machine.run("useradd")
    machine.run("/opt/overread/current/venv/bin/overread-edge certs")
    settings = (
        block("inbox = ")
        .partition("[cloud]")[0]
        .replace("9464", "0")
        .replace('"/', f'"{machine.root}/')
    )
    (machine.root / "etc/overread/edge.toml").write_text(settings)
    assert "the agent makes it at its start" in machine.run(DOCTOR)
    machine.run("cp /opt/overread/current/deploy", **{"journalctl -u overread-edge -f": ""})
    assert "the agent makes it at its start" not in machine.run(DOCTOR)
    machine.read(study, "one")
    shipped = machine.database()
    for _ in range(2):
        machine.run("mkdir -p -m 0700 /backup")
    assert {path.name for path in (machine.root / "backup" / "overread").iterdir()} == {"last"}
    # upgrade twice
    for number, tag in enumerate(tags[1:], 1):
        machine.version = tag
        assert "start the agent, which migrates it" in machine.run("VERSION=", **{"v0.2.0": tag})
        machine.run("systemctl stop overread-edge\nln")
        machine.run("systemctl start overread-edge\ncd")
        assert machine.database() == 900 + number
        machine.read(study, f"after-{tag}")
    opt = machine.root / "opt" / "overread"
    assert sorted(path.name for path in opt.iterdir()) == ["current", *tags]
    assert os.readlink(opt / "current") == "v0.3.0"
    # back
    machine.version = "v0.2.0"
    machine.run("systemctl stop overread-edge\nln")
    assert "a newer Overread has used it" in machine.run(DOCTOR, status=1)
    machine.run("cd /var/lib/overread/state")
    machine.run("systemctl start overread-edge\ncd")
    assert (os.readlink(opt / "current"), machine.database()) == ("v0.2.0", 901)
    assert machine.reports == {"one", "after-v0.2.0", "after-v0.3.0"}
    machine.read(study, "after-back")
    # restore what was there before the upgrades
    shutil.rmtree(machine.root / "srv" / "overread" / "outbox")
    machine.run("systemctl stop overread-edge\ntest")
    assert machine.reports >= {"one"}
    assert shipped < machine.database() == 901
    machine.run(DOCTOR)
    machine.read(study, "after-restore")
    # uninstall
    for beginning in ("systemctl disable", "rm -r /var"):
        machine.run(beginning)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*overread*")}
    kept = {"repository", "backup", "home"}
    assert {path for path in left if path.split("/")[0] not in kept} == set()
