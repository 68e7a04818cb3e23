"""The users of the status page: names, roles and hashed passwords, a line each, in one file.

A file with one password or its hash, and no name, is one operator. The page reads the file again
after each change: who is removed sees nothing more, whatever session he has.
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
from typing import Self

from edge.atomic_files import write_atomically
from edge.errors import BadSettings

MOST_NAME = 64
"""Longest name in characters."""
NAMELESS_USER = "operator"
"""The user of a file that holds a password without a name."""
_COST = (2**14, 8, 1)
"""Of scrypt, n, r and p: 16 MB and 50 ms. One for all: the time shall not tell who is there."""
_LINE = re.compile(r"([^:]*):([^:]*):(scrypt:.*)|[^:]*:(?:reader|operator):.*")
"""A line of a user; without groups where the hash is none, which is no password either."""


class Role(StrEnum):
    """What a user may do: a reader sees everything, an operator may also change something."""

    READER = "reader"
    OPERATOR = "operator"


@dataclass(frozen=True)
class Password:
    """A password as its scrypt hash (RFC 7914)."""

    salt: bytes
    hashed: bytes

    @classmethod
    def of(cls, text: str) -> Self:
        """Hash a password."""
        salt = secrets.token_bytes(16)
        return cls(salt, _scrypt(text, salt))

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read what `line` gives.

        Raises:
            ValueError: it is damaged, or of another cost.
        """
        *head, salt, hashed = line.split(":")
        one = cls(b64decode(salt, validate=True), b64decode(hashed, validate=True))
        if head != ["scrypt", *map(str, _COST)] or len(one.hashed) != 64:
            raise ValueError(head)
        return one

    @property
    def line(self) -> str:
        """The hash as text."""
        texts = (b64encode(one).decode() for one in (self.salt, self.hashed))
        return ":".join(("scrypt", *map(str, _COST), *texts))

    def matches(self, text: str) -> bool:
        """Tell whether this is the password, in a time that does not depend on where it differs."""
        return hmac.compare_digest(_scrypt(text, self.salt), self.hashed)


def _scrypt(text: str, salt: bytes) -> bytes:
    n, r, p = _COST
    return hashlib.scrypt(text.encode("utf-8", "replace"), salt=salt, n=n, r=r, p=p, maxmem=2**26)


@dataclass(frozen=True)
class Account:
    """One user of the file."""

    role: Role
    password: Password


def is_name(text: str) -> bool:
    """Tell whether a user may have this name."""
    return 0 < len(text) <= MOST_NAME and text.isprintable() and text == text.strip()


def load_users(path: Path) -> Mapping[str, Account]:
    """Return the users of a file, which is read again when it has changed.

    Raises:
        BadSettings: it cannot be read, is empty, or a line of it is damaged; the message has no
            part of a password or hash.
    """
    name = f"page.password_file = {path}"
    try:
        now = path.stat()
        return _read(path, name, (now.st_ino, now.st_mtime_ns, now.st_ctime_ns, now.st_size))
    except OSError as error:
        raise BadSettings(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadSettings(f"{name} is not UTF-8 text") from error


@lru_cache(1)
def _read(path: Path, name: str, _state: object) -> Mapping[str, Account]:
    given = enumerate(path.read_text("utf-8").split("\n"), 1)
    lines = [(n, line.strip("\r")) for n, line in given if line.strip()]
    if len(lines) == 1 and not _LINE.match(lines[0][1]):
        return {NAMELESS_USER: Account(Role.OPERATOR, _password_of(name, lines[0][1]))}
    users = dict[str, Account]()
    for number, line in lines:
        where, found = f"{name}, line {number}", _LINE.fullmatch(line)
        user, role, hashed = found.groups("") if found else ("", "", "")
        if not is_name(user) or role not in list(Role):
            wanted = "expected NAME:ROLE:HASH, with the role reader or operator"
            raise BadSettings(f"{where}: {wanted}; overread-edge password writes such a line")
        if user in users:
            raise BadSettings(f"{where}: the user {user} is there twice")
        users[user] = Account(Role(role), _password_of(where, hashed))
    if not users:
        raise BadSettings(f"{name} is empty: add a user with overread-edge password")
    return users


def _password_of(where: str, text: str) -> Password:
    try:
        return Password.parse(text) if text.startswith("scrypt:") else Password.of(text)
    except ValueError as error:
        hint = "make it again with overread-edge password"
        raise BadSettings(f"{where}: the hash is damaged, {hint}") from error


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
    users[user] = Account(role, Password.of(password))
    lines = (f"{name}:{one.role}:{one.password.line}\n" for name, one in users.items())
    write_atomically(path, "".join(lines).encode())
    path.chmod(0o600)
    if before and before.st_uid != os.geteuid():
        os.chown(path, before.st_uid, before.st_gid)
    return role
