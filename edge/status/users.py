"""The users of the status page: names, roles and hashed passwords, a line each, in one file.

The page reads the file again after each change: who is removed sees nothing more, whatever session
he has.
"""

import hashlib
import hmac
import os
import re
import secrets
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from edge.atomic_files import write_atomically
from edge.errors import BadSettings
from process.files import state_of

MAX_NAME = 64
"""Longest name in characters."""
NAMELESS_USER = "operator"
"""The user that a command without a name adds; alone in the file, he is asked for no name."""
_N, _R, _P = 2**14, 8, 1
"""Cost of scrypt (RFC 7914): 16 MB and 50 ms. One for all: the time shall not tell who is there."""
_HASH = re.compile(rf"scrypt:{_N}:{_R}:{_P}:[A-Za-z0-9+/]{{22}}==:[A-Za-z0-9+/]{{86}}==")
NOBODY = f"scrypt:{_N}:{_R}:{_P}:{'A' * 22}==:{'A' * 86}=="
"""A hash that no password has."""


class Role(StrEnum):
    """What a user may do: a reader sees everything, an operator may also change something."""

    READER = "reader"
    OPERATOR = "operator"


@dataclass(frozen=True)
class Account:
    """One user of the file, with the hash of his password."""

    role: Role
    hash: str


def hash_of(password: str, salt: bytes | None = None) -> str:
    """Return the hash of a password as text, by default with a new salt of 16 bytes."""
    salt = salt or secrets.token_bytes(16)
    text = password.encode("utf-8", "replace")
    key = hashlib.scrypt(text, salt=salt, n=_N, r=_R, p=_P, maxmem=2**26)
    return f"scrypt:{_N}:{_R}:{_P}:{b64encode(salt).decode()}:{b64encode(key).decode()}"


def is_password(text: str, hashed: str) -> bool:
    """Tell whether a password has this hash, in a time that does not depend on the password."""
    return hmac.compare_digest(hash_of(text, b64decode(hashed.split(":")[4])), hashed)


def is_name(text: str) -> bool:
    """Tell whether a user may have this name."""
    return 0 < len(text) <= MAX_NAME and text.isprintable() and text == text.strip()


def load_users(path: Path) -> Mapping[str, Account]:
    """Return the users of a file, which is read again when it has changed.

    Raises:
        BadSettings: it cannot be read, is empty, or a line of it is damaged; the message has no
            part of a password or hash.
    """
    name = f"page.password_file = {path}"
    try:
        return _read(path, name, state_of(path.stat()))
    except OSError as error:
        raise BadSettings(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadSettings(f"{name} is not UTF-8 text") from error


@lru_cache(1)
def _read(path: Path, name: str, _state: object) -> Mapping[str, Account]:
    given = enumerate(path.read_text("utf-8-sig").split("\n"), 1)
    lines = [(n, line.strip("\r")) for n, line in given if line.strip()]
    if not lines:
        raise BadSettings(f"{name} is empty: add a user with overread-edge password")
    users = dict[str, Account]()
    for number, line in lines:
        user, role, hashed = (*line.split(":", 2), "", "")[:3]
        if not (is_name(user) and role in list(Role) and _HASH.fullmatch(hashed)):
            wanted = "expected NAME:ROLE:HASH, with the role reader or operator and a whole hash"
            hint = "overread-edge password writes such a line"
            raise BadSettings(f"{name}, line {number}: {wanted}; {hint}")
        if user in users:
            raise BadSettings(f"{name}, line {number}: the user {user} is there twice")
        users[user] = Account(Role(role), hashed)
    return users


def put_user(path: Path, user: str, role: Role | None, password: str) -> Role:
    """Write a user into the file, in place of one of the same name; return the role.

    Without a role, one that is there keeps his, and another is a reader; `NAMELESS_USER` is an
    operator. The file stays that of its owner alone.

    Raises:
        BadSettings: the file is damaged.
        OSError: it cannot be written.
    """
    before = path.stat() if path.exists() else None
    users = dict(load_users(path)) if before and before.st_size else {}
    default = Role.OPERATOR if user == NAMELESS_USER else Role.READER
    role = role or (users[user].role if user in users else default)
    users[user] = Account(role, hash_of(password))
    lines = (f"{name}:{one.role}:{one.hash}\n" for name, one in users.items())
    write_atomically(path, "".join(lines).encode())
    path.chmod(0o600)
    if before and before.st_uid != os.geteuid():
        os.chown(path, before.st_uid, before.st_gid)
    return role
