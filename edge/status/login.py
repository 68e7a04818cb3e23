"""Who may see the status page: by password, by client certificate, or everyone on this machine.

A login is kept in Starlette's session, a signed cookie; its key changes at every start. A login
that cannot be audited is refused.

The guard is before all pages: who calls, from which page, with which form; and safe headers. GET
and HEAD change nothing. A POST needs a user, an ``Origin`` that is this server, and the user's form
token. A form is read here and nowhere else, up to `MOST_BODY`.
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
from urllib.parse import parse_qsl, quote, urlsplit

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.audit import Event, Person
from edge.errors import BadSettings, EdgeError
from edge.site import Site
from edge.status.wording import age
from process.http import certificate_names
from process.tls import is_loopback

SESSION_S = 8 * 3600.0
"""A session ends this long after its login."""
ATTEMPTS, ATTEMPTS_IN_ALL, WITHIN_S = 5, 100, 300.0
"""Failed logins that one address, and all together, may make within this time."""
MOST_PASSWORD = 1024
"""Longest password in bytes."""
_COST = (2**14, 8, 1)  # 16 MB and 50 ms

MOST_BODY = 8192
TOKEN = "token"
"""Name of the form token in a form; as a header it is `TOKEN_HEADER`."""
TOKEN_HEADER = "x-form-token"
LOGIN = "login"
"""The purpose of the form token of the login page."""

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # not no-referrer: with it browsers send forms without their origin
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "sandbox allow-popups; default-src 'none'; img-src data:; style-src 'unsafe-inline';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the report's own page, which has its style and its pictures inside."""

NAMELESS = "a certificate without a name"
"""Who is logged in by one."""

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


class Guard:
    """The pages of ``app`` for whom ``authenticator`` admits; needs Starlette's sessions.

    ``secure`` says that the way to them is encrypted.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator, *, secure: bool) -> None:
        self._app, self._authenticator, self._secure = app, authenticator, secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["user"] = None

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("content-security-policy", POLICY)
                headers.setdefault("cache-control", "no-store")
                headers.update(HEADERS)
                if self._secure:
                    headers["strict-transport-security"] = "max-age=31536000"
            await send(message)

        try:
            answer = await self._refusal(Request(scope, receive))
            await (answer or self._app)(scope, receive, send_safely)
        except Exception:  # whatever it is, the server goes on; the path has keys, and no names
            log.exception("status page failed", path=scope["path"])

    async def _refusal(self, request: Request) -> Response | None:
        """Return the answer to a request that may not go on; else note its user and its form."""
        path, method = request.url.path, request.method
        host = request.headers.get("host", "")
        is_bare = ":" not in host or (host[0], host[-1]) == ("[", "]")  # without a port
        if self._authenticator.is_open and not is_loopback(f"{host}:0" if is_bare else host):
            # a page of another site whose name leads to this machine would be the same origin
            return _refused(421, "This page is for this machine alone: use http://localhost.")
        if method not in ("GET", "HEAD", "POST"):
            return _refused(405, "Only GET, HEAD and POST.")
        if method == "POST" and urlsplit(request.headers.get("origin", "")).netloc != host:
            return _refused(403, "The request comes from another page than this one.")
        if path.startswith("/static/"):
            return None
        names, address = certificate_names(request), address_of(request)
        certificate = "" if names is None else next(iter(names), NAMELESS)
        try:
            find = self._authenticator.user
            user = await run_in_threadpool(find, request.session, certificate, address)
        except LoginRefused as error:
            return _refused(error.status, str(error))
        request.scope["user"] = user
        if user is None and path != "/login":
            is_page = request.headers.get("sec-fetch-dest", "document") == "document"
            if method == "POST" or not is_page:
                return _refused(401, "Log in first.")
            return RedirectResponse(f"/login?next={quote(path, safe='')}", 303)
        token = user.form_token if user else self._authenticator.token(LOGIN)
        return await _read_form(request, token) if method == "POST" else None


def address_of(request: Request) -> str:
    """Return from where a request comes."""
    return request.client.host if request.client else "unknown"


async def _read_form(request: Request, token: str) -> Response | None:
    """Read the form into the request's state; return the answer to one that is refused."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MOST_BODY:
        return _refused(413, "The form is too long.")
    form = dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
    given = request.headers.get(TOKEN_HEADER) or form.get(TOKEN, "")
    if not hmac.compare_digest(given.encode(), token.encode()):
        return _refused(403, "The form is too old: go back, load the page again, repeat.")
    request.state.form = form
    return None


def _refused(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status)
