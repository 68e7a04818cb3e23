"""Who may look at the status page: password, sessions, and a limit on failed attempts.

Sessions are in memory: a restart of the agent ends them. Their tokens are stored as hashes.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edge.errors import BadSettings

SESSION_S = 8 * 3600.0
"""A session ends this long after its login."""
MOST_SESSIONS = 100
ATTEMPTS, ATTEMPTS_IN_ALL, WITHIN_S = 5, 100, 300.0
"""Failed logins that one address, and all together, may make within this time."""
MOST_PASSWORD = 1024
"""Longest password in bytes."""
_COST = (2**14, 8, 1)  # 16 MB and 50 ms
_HASH = re.compile(r"scrypt:(\d+):(\d+):(\d+):([\w+/=]+):([\w+/=]+)", re.ASCII)


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
        name = f"status_password_file = {path}"
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
            n, r, p, salt, hashed = _HASH.fullmatch(text).groups()  # type: ignore[union-attr]
            cost = (int(n), int(r), int(p))
            loaded = cls(
                base64.b64decode(salt, validate=True), base64.b64decode(hashed, validate=True), cost
            )
            loaded.matches("")
        except (AttributeError, ValueError, binascii.Error, OverflowError) as error:
            hint = "make it again with overread-edge password"
            raise BadSettings(f"{name}: the hash is damaged, {hint}") from error
        return loaded

    @property
    def line(self) -> str:
        """The hash as a line of a file."""
        texts = (base64.b64encode(one).decode() for one in (self.salt, self.hashed))
        return ":".join(("scrypt", *map(str, self.cost), *texts))

    def matches(self, text: str) -> bool:
        """Tell whether this is the password, in a time that does not depend on where it differs."""
        return hmac.compare_digest(_scrypt(text, self.salt, self.cost), self.hashed)


def _scrypt(text: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    most = 64 * 2**20
    return hashlib.scrypt(text.encode("utf-8", "replace"), salt=salt, n=n, r=r, p=p, maxmem=most)


@dataclass(frozen=True)
class Visitor:
    """Somebody who may see the pages.

    Attributes:
        name: for the log and the page.
        form_token: what each form of this visitor must bring.
        by_password: whether there is a session that can be ended.
    """

    name: str
    form_token: str
    by_password: bool = False


class Sessions:
    """The sessions that are open, by the hash of their token; several threads may use it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._open: dict[bytes, tuple[float, Visitor]] = {}

    def begin(self, name: str) -> str:
        """Open a session and return its token; beyond `MOST_SESSIONS` the oldest ends."""
        token, now_s = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._drop(now_s)
            while len(self._open) >= MOST_SESSIONS:
                self._open.pop(next(iter(self._open)))
            visitor = Visitor(name, secrets.token_urlsafe(32), by_password=True)
            self._open[_key(token)] = now_s + SESSION_S, visitor
        return token

    def visitor(self, token: str) -> Visitor | None:
        """Return whose session it is; None if it has ended or never was."""
        with self._lock:
            self._drop(self._clock())
            found = self._open.get(_key(token))
        return found[1] if found else None

    def end(self, token: str) -> None:
        """End a session."""
        with self._lock:
            self._open.pop(_key(token), None)

    def _drop(self, now_s: float) -> None:
        for key in [key for key, (until_s, _) in self._open.items() if until_s <= now_s]:
            del self._open[key]


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


class Attempts:
    """Failed logins of the last minutes: from one address, and in all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._failed: list[tuple[float, str]] = []

    def wait_s(self, address: str) -> float:
        """Return for how long this address may not try again, 0 if it may now."""
        with self._lock:
            now_s = self._clock()
            self._failed = [one for one in self._failed if one[0] > now_s - WITHIN_S]
            own = [at_s for at_s, who in self._failed if who == network_of(address)]
            every = [at_s for at_s, _ in self._failed]
            until = [one[-most] for one, most in ((own, ATTEMPTS), (every, ATTEMPTS_IN_ALL))
                     if len(one) >= most]  # fmt: skip
            return max((at_s + WITHIN_S - now_s for at_s in until), default=0.0)

    def failed(self, address: str) -> None:
        """Note a failed login."""
        with self._lock:
            self._failed.append((self._clock(), network_of(address)))

    def succeeded(self, address: str) -> None:
        """Forget the failed logins of an address."""
        with self._lock:
            self._failed = [one for one in self._failed if one[1] != network_of(address)]


def network_of(address: str) -> str:
    """Return whom an address stands for: of IPv6 one customer has a whole /64."""
    try:
        number = ipaddress.ip_address(address)
    except ValueError:
        return address
    if number.version == 4:
        return address
    return str(ipaddress.ip_network((number, 64), strict=False))


class Door:
    """Decides who comes in: by password, by client certificate, or everyone on this machine.

    ``password`` None and ``by_certificate`` False stand for everyone: the settings allow that on a
    loopback address only.
    """

    def __init__(
        self,
        password: Password | None,
        *,
        by_certificate: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._password, self._by_certificate = password, by_certificate
        self._sessions, self._attempts = Sessions(clock), Attempts(clock)
        self._secret = secrets.token_bytes(32)
        self._hashing = threading.Lock()  # one hash at a time: a flood shall not stop the agent

    @property
    def is_open(self) -> bool:
        """Whether everyone on this machine comes in."""
        return self._password is None and not self._by_certificate

    @property
    def takes_password(self) -> bool:
        """Whether there is a password."""
        return self._password is not None

    def visitor(self, session: str, certificate: str) -> Visitor | None:
        """Return who calls with this session and this name in a certificate; None for nobody."""
        if self.is_open:
            return Visitor("open to every user of this machine", self.token("everyone"))
        if self._by_certificate and certificate:
            return Visitor(certificate, self.token(f"certificate {certificate}"))
        return self._sessions.visitor(session) if session and self.takes_password else None

    def token(self, purpose: str) -> str:
        """Return the token of forms without a session; it is another after each start."""
        return hmac.new(self._secret, purpose.encode(), hashlib.sha256).hexdigest()

    def log_in(self, text: str, address: str) -> tuple[str, float]:
        """Return the token of a new session; empty, with the seconds to wait, if there is none."""
        if self._password is None:
            return "", 0.0
        with self._hashing:
            if wait_s := self._attempts.wait_s(address):
                return "", wait_s
            if len(text.encode("utf-8", "replace")) > MOST_PASSWORD or not self._password.matches(
                text
            ):
                self._attempts.failed(address)
                return "", self._attempts.wait_s(address)
        self._attempts.succeeded(address)
        return self._sessions.begin(f"password, from {address}"), 0.0

    def log_out(self, session: str) -> None:
        """End a session."""
        self._sessions.end(session)
