"""Who may see the status page: by password, by client certificate, or everyone on this machine.

A login is kept in Starlette's session, a signed cookie; its key changes at every start. A login
that cannot be audited is refused.
"""

import hashlib
import hmac
import secrets
import sqlite3
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import structlog

from edge.audit import Event, Person
from edge.errors import BadSettings, EdgeError
from edge.site import Site
from edge.status.wording import age

SESSION_S = 8 * 3600.0
"""A session ends this long after its login."""
ATTEMPTS, ATTEMPTS_IN_ALL, WITHIN_S = 5, 100, 300.0
"""Failed logins that one address, and all together, may make within this time."""
MOST_PASSWORD = 1024
"""Longest password in bytes."""
_COST = (2**14, 8, 1)  # 16 MB and 50 ms

Session = MutableMapping[str, Any]
"""What the cookie of a user holds; only this process can sign it."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Password:
    """A password as its scrypt hash (RFC 7914); ``cost`` is n, r and p."""

    salt: bytes
    hashed: bytes
    cost: tuple[int, int, int] = _COST

    @classmethod
    def of(cls, text: str) -> Self:
        """Hash a password."""
        salt = secrets.token_bytes(16)
        return cls(salt, _scrypt(text, salt, _COST))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file with one line: the password, or what `line` gives.

        Raises:
            BadSettings: it cannot be read, is empty, or holds a damaged hash.
        """
        name = f"page.password_file = {path}"
        try:
            text = path.read_text("utf-8").strip("\r\n")
        except OSError as error:
            raise BadSettings(f"{name}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise BadSettings(f"{name} is not UTF-8 text") from error
        if not text.strip() or "\n" in text or len(text.encode()) > MOST_PASSWORD:
            raise BadSettings(f"{name}: expected one line with a password or its hash")
        if not text.startswith("scrypt:"):
            return cls.of(text)
        try:
            _, n, r, p, salt, hashed = text.split(":")
            loaded = cls(b64decode(salt, validate=True), b64decode(hashed, validate=True),
                         (int(n), int(r), int(p)))  # fmt: skip
            loaded.matches("")
        except (ValueError, OverflowError) as error:
            hint = "make it again with overread-edge password"
            raise BadSettings(f"{name}: the hash is damaged, {hint}") from error
        return loaded

    @property
    def line(self) -> str:
        """The hash as a line of a file."""
        texts = (b64encode(one).decode() for one in (self.salt, self.hashed))
        return ":".join(("scrypt", *map(str, self.cost), *texts))

    def matches(self, text: str) -> bool:
        """Tell whether this is the password, in a time that does not depend on where it differs."""
        return hmac.compare_digest(_scrypt(text, self.salt, self.cost), self.hashed)


def _scrypt(text: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    most = 64 * 2**20
    return hashlib.scrypt(text.encode("utf-8", "replace"), salt=salt, n=n, r=r, p=p, maxmem=most)


@dataclass(frozen=True)
class User:
    """Somebody who may see the pages.

    Attributes:
        name: for the log, the audit trail and the page.
        form_token: what each form of this user must bring.
        by_password: whether there is a session that can be ended.
    """

    name: str
    form_token: str
    by_password: bool = False


class LoginRefused(Exception):
    """Somebody may not come in now; ``status`` is that of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Authenticator:
    """Decides who may see the pages; several threads may use it.

    ``password`` None and ``by_certificate`` False stand for everyone: the settings allow that on a
    loopback address only. Logins are audited in the database of the ``site``.
    """

    def __init__(
        self,
        password: Password | None,
        site: Site,
        *,
        by_certificate: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._password, self._site, self._clock = password, site, clock
        self._by_certificate = by_certificate
        self._secret, self._ended = secrets.token_bytes(32), set[str]()
        self._failed: list[tuple[float, str]] = []
        self._hashing = threading.Lock()  # one hash at a time: a flood shall not stop the agent

    @property
    def is_open(self) -> bool:
        """Whether everyone on this machine may see the pages."""
        return self._password is None and not self._by_certificate

    def token(self, purpose: str) -> str:
        """Return the token of forms for a session or page; it changes at every start."""
        return hmac.new(self._secret, purpose.encode(), hashlib.sha256).hexdigest()

    def user(self, session: Session, certificate: str, address: str) -> User | None:
        """Return who calls; None for nobody. The first call with a certificate is a login.

        Raises:
            LoginRefused: that login cannot be audited.
        """
        if self.is_open:
            return User("open to every user of this machine", self.token("everyone"))
        certificate = certificate if self._by_certificate else ""
        if not self._is_valid(session, certificate):
            if not certificate:
                return None
            self._begin(session, certificate, certificate, address)
        return User(session["name"], self.token(session["id"]), by_password=not certificate)

    def log_in(self, session: Session, text: str, address: str) -> None:
        """Begin a session by password.

        Raises:
            LoginRefused: the password is wrong, this address has to wait, or the login cannot be
                audited.
        """
        with self._hashing:
            self._require_few_failures(address)
            if self._password is None or not self._password.matches(text):
                self._failed.append((self._clock(), address))
                self._audit(Person("unknown", address), outcome="failure", reason="wrong password")
                log.warning("login to the status page failed", address=address)
                self._require_few_failures(address)
                raise LoginRefused(403, "This is not the password.")
            self._failed = [one for one in self._failed if one[1] != address]
        self._begin(session, f"password, from {address}", "", address)

    def log_out(self, session: Session) -> None:
        """End a session; a copy of its cookie is not valid any more."""
        self._ended.add(session.get("id", ""))
        session.clear()

    def _is_valid(self, session: Session, certificate: str) -> bool:
        return (
            session.get("certificate") == certificate
            and session["until_s"] > self._clock()
            and session["id"] not in self._ended
        )

    def _begin(self, session: Session, name: str, certificate: str, address: str) -> None:
        if not self._audit(Person(name, address), outcome="success"):
            raise LoginRefused(503, "Logins cannot be recorded now. Try again.")
        log.info("login to the status page", address=address)
        until_s = self._clock() + SESSION_S
        new = {"id": secrets.token_urlsafe(16), "name": name, "until_s": until_s}
        session.update(new, certificate=certificate)

    def _require_few_failures(self, address: str) -> None:
        """Refuse a login after too many that failed, from this address or from all together."""
        now_s = self._clock()
        self._failed = [one for one in self._failed if one[0] > now_s - WITHIN_S]
        own = [one for one in self._failed if one[1] == address]
        for failed, most in ((own, ATTEMPTS), (self._failed, ATTEMPTS_IN_ALL)):
            if len(failed) >= most:
                wait_s = failed[-most][0] + WITHIN_S - now_s
                text = f"Too many failed attempts. Try again in {age(wait_s)}."
                raise LoginRefused(429, text)

    def _audit(self, person: Person, **fields: str) -> bool:
        """Record a login in the audit trail; return whether that could be done."""
        try:
            with self._site.opened() as store:
                store.trail.record(Event.LOGIN, **person.fields, **fields)
        except (EdgeError, OSError, sqlite3.Error) as error:
            log.warning("login cannot be recorded", error=str(error))
            return False
        return True
