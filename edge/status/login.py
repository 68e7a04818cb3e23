"""Who may see the status page, and who may also change something.

A user comes by password, by client certificate, through a proxy that names him, or as everyone on
this machine. A login is kept in Starlette's session, a signed cookie; its key changes at every
start. A login that cannot be audited is refused. What a user of a password may, and whether he is
one still, the file of users says at each request.

The guard is before all pages: who calls, from which page, with which form; and safe headers. GET
and HEAD change nothing but the audit trail. A POST needs a user, an ``Origin`` that is this server,
and the user's form token; all but `READERS_POST` are for operators. A form is read here and nowhere
else, up to `MOST_BODY`.
"""

import hashlib
import hmac
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.audit import Event, Person
from edge.errors import BadSettings, EdgeError
from edge.site import Site
from edge.status.users import (
    MOST_NAME,
    NAMELESS_USER,
    NOBODY,
    Account,
    Role,
    is_name,
    is_password,
    load_users,
)
from edge.status.wording import age
from process.http import SlowBody, body_parts, certificate_names
from process.tls import is_loopback

SESSION_S = 8 * 3600.0
"""A session ends this long after its login."""
ATTEMPTS, ATTEMPTS_OF_ADDRESS, ATTEMPTS_IN_ALL, WITHIN_S = 5, 50, 100, 300.0
"""Failed logins as one user from one address, from one address, and of all, within this time.

Behind one address there may be a proxy, and behind it a ward.
"""

MOST_BODY, BODY_S = 8192, 10.0
"""Bytes of a form, and the time in which it must arrive."""
MOST_PATH = 200
"""Letters of a path; all that lead to a page are shorter."""
TOKEN = "token"
"""Name of the form token in a form; as a header it is `TOKEN_HEADER`."""
TOKEN_HEADER = "x-form-token"
READERS_POST = re.compile(r"/login|/logout|/study/[^/]+/volume")
"""Where a form changes nothing that another user sees."""
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
class User:
    """Somebody who may see the pages.

    Attributes:
        name: for the log, the audit trail and the page.
        form_token: what each form of this user must bring.
        is_operator: whether he may change something.
        by_password: whether there is a session that can be ended.
    """

    name: str
    form_token: str
    is_operator: bool = True
    by_password: bool = False


class LoginRefused(Exception):
    """Somebody may not come in now; ``status`` is that of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Authenticator:
    """Decides who may see the pages; several threads may use it.

    The settings allow an address other than loopback only where somebody is asked who he is. Logins
    are audited in the database of the ``site``.

    Attributes:
        header: in which a proxy names the user.
        has_login: whether somebody can log in by password.
    """

    def __init__(self, site: Site, clock: Callable[[], float] = time.monotonic) -> None:
        self._page, self._site, self._clock = site.settings.page, site, clock
        self._file, self.header = self._page.password_file, self._page.proxy_header
        self.has_login = self._file is not None
        self._by_certificate = self._page.tls.ca is not None
        self._secret, self._ended = secrets.token_bytes(32), set[str]()
        self._failed: list[tuple[float, str, str]] = []
        self._hashing = threading.Lock()  # one hash at a time: a flood shall not stop the agent

    @property
    def is_open(self) -> bool:
        """Whether everyone on this machine may see the pages."""
        return not (self._file or self._by_certificate or self._page.proxies)

    @property
    def asks_name(self) -> bool:
        """Whether a user is asked for a name: not where there is only one, without a name."""
        with suppress(LoginRefused):
            return set(self._users()) != {NAMELESS_USER}
        return True

    def token(self, purpose: str) -> str:
        """Return the token of forms for a session or page; it changes at every start."""
        return hmac.new(self._secret, purpose.encode(), hashlib.sha256).hexdigest()

    def user(
        self, session: Session, certificate: str, address: str, named: Sequence[str] = ()
    ) -> User | None:
        """Return who calls; None for nobody. The first call of whom others name is a login.

        ``named`` are the values of `header`; they count only if the caller is the proxy.

        Raises:
            LoginRefused: that login cannot be audited, or the file of users cannot be read.
        """
        if self.is_open:
            return User("open to every user of this machine", self.token("everyone"))
        is_proxy = bool({address, certificate} & set(self._page.proxies))
        name = _single(named) if is_proxy else certificate if self._by_certificate else ""
        if name:
            if not self._is_valid(session, name):
                self._begin(session, name, address, certificate=name)
            return User(name, self.token(session["id"]), name in self._page.operators)
        account = self._users().get(session["name"]) if self._is_valid(session, "") else None
        if account is None or session["password"] != self.token(account.hash):
            return None
        is_operator = account.role is Role.OPERATOR
        return User(session["name"], self.token(session["id"]), is_operator, by_password=True)

    def log_in(self, session: Session, name: str, text: str, address: str) -> None:
        """Begin a session by name and password; the name does not count where users have none.

        Raises:
            LoginRefused: name or password are wrong, this address has to wait, the login cannot be
                audited, or the file of users cannot be read.
        """
        users = self._users()
        name = name[:MOST_NAME] if self.asks_name else NAMELESS_USER
        with self._hashing:
            self._require_few_failures(address, name)
            account = users.get(name)
            # an unknown name takes as long as a wrong password
            is_right = is_password(text, account.hash if account else NOBODY)
            if account is None or not is_right:
                self._failed.append((self._clock(), address, name))
                # a name that nobody has may be a password in the wrong field
                who, why = (name, "wrong password") if account else ("unknown", "unknown user")
                person = Person(who, address)
                audited(self._site, Event.LOGIN, person, outcome="failure", reason=why)
                log.warning("login to the status page failed", address=address)
                self._require_few_failures(address, name)
                raise LoginRefused(403, "The user name or the password is wrong.")
            self._failed = [one for one in self._failed if one[1:] != (address, name)]
        self._begin(session, name, address, password=self.token(account.hash))

    def log_out(self, session: Session) -> None:
        """End a session; a copy of its cookie is not valid any more."""
        self._ended.add(session.get("id", ""))
        session.clear()

    def _users(self) -> Mapping[str, Account]:
        try:
            return load_users(self._file) if self._file else {}
        except BadSettings as error:
            log.warning("users of the status page cannot be read", reason=str(error))
            text = "The users of this page cannot be read now. The agent's log says why."
            raise LoginRefused(503, text) from error

    def _is_valid(self, session: Session, certificate: str) -> bool:
        return (
            session.get("certificate", "") == certificate
            and session.get("until_s", 0.0) > self._clock()
            and session["id"] not in self._ended
        )

    def _begin(self, session: Session, name: str, address: str, **proof: str) -> None:
        """Begin a session, and end that before; ``proof`` is what must stay as it is."""
        if not audited(self._site, Event.LOGIN, Person(name, address), outcome="success"):
            raise LoginRefused(503, "Logins cannot be recorded now. Try again.")
        log.info("login to the status page", address=address)
        self.log_out(session)
        until_s = self._clock() + SESSION_S
        new = {"id": secrets.token_urlsafe(16), "name": name, "until_s": until_s}
        session.update(new, **proof)

    def _require_few_failures(self, address: str, name: str) -> None:
        """Refuse a login after too many that failed, of this user, this address or all together."""
        now_s = self._clock()
        self._failed = [one for one in self._failed if one[0] > now_s - WITHIN_S]
        near = [one for one in self._failed if one[1] == address]
        own = [one for one in near if one[2] == name]
        limits = ((own, ATTEMPTS), (near, ATTEMPTS_OF_ADDRESS), (self._failed, ATTEMPTS_IN_ALL))
        for failed, most in limits:
            if len(failed) >= most:
                wait_s = failed[-most][0] + WITHIN_S - now_s
                text = f"Too many failed attempts. Try again in {age(wait_s)}."
                raise LoginRefused(429, text)


def _single(named: Sequence[str]) -> str:
    """Return the one name that a header has, as UTF-8; empty if it has none, two, or an odd one."""
    try:
        name = named[0].encode("latin-1").decode() if len(named) == 1 else ""
    except UnicodeError:
        return ""
    return name if is_name(name) else ""


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
        except ClientDisconnect:  # no fault of the page
            pass
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
        if len(path) > MOST_PATH:
            return _refused(404, "There is no such page.")
        if method not in ("GET", "HEAD", "POST"):
            return _refused(405, "Only GET, HEAD and POST.")
        if method == "POST" and request.headers.get("origin", "").partition("://")[2] != host:
            return _refused(403, "The request comes from another page than this one.")
        if path.startswith("/static/"):
            return None
        names, address = certificate_names(request), address_of(request)
        certificate = "" if names is None else next(iter(names), NAMELESS)
        try:
            find = self._authenticator.user
            named = request.headers.getlist(self._authenticator.header)
            user = await run_in_threadpool(find, request.session, certificate, address, named)
        except LoginRefused as error:
            return _refused(error.status, str(error))
        request.scope["user"] = user
        if user is None and not self._authenticator.has_login:
            return _refused(403, "Sign in at the proxy first: it does not name you.")
        if user is None and path != "/login":
            is_page = request.headers.get("sec-fetch-dest", "document") == "document"
            if method == "POST" or not is_page:
                return _refused(401, "Log in first.")
            return RedirectResponse(f"/login?next={quote(path, safe='')}", 303)
        if method == "POST" and user and not (user.is_operator or READERS_POST.fullmatch(path)):
            return _refused(403, f"Only an operator may do this. {user.name} is a reader.")
        token = user.form_token if user else self._authenticator.token(LOGIN)
        return await _read_form(request, token) if method == "POST" else None


def address_of(request: Request) -> str:
    """Return from where a request comes."""
    return request.client.host if request.client else "unknown"


def person_of(request: Request) -> Person:
    """Return the user who asks, for the audit trail."""
    return Person(str(request.user.name), address_of(request))


def audited(site: Site, event: Event, by: Person, **facts: Any) -> bool:
    """Record what a user does in the audit trail; return whether that could be done."""
    try:
        with site.opened() as store:
            store.trail.record(event, **by.fields, **facts)
    except (EdgeError, OSError, sqlite3.Error) as error:
        log.warning("audit trail cannot be written", what=event.value, error=str(error))
        return False
    return True


async def _read_form(request: Request, token: str) -> Response | None:
    """Read the form into the request's state; return the answer to one that is refused."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MOST_BODY:
        return _refused(413, "The form is too long.")
    try:
        body = b"".join(
            [part async for part in body_parts(request, idle_s=BODY_S, within_s=BODY_S)]
        )
    except SlowBody:
        return _refused(408, f"The form did not arrive within {BODY_S:g} s.")
    form = dict(parse_qsl(body.decode("utf-8", "replace")))
    given = request.headers.get(TOKEN_HEADER) or form.get(TOKEN, "")
    if not hmac.compare_digest(given.encode(), token.encode()):
        return _refused(403, "The form is too old: go back, load the page again, repeat.")
    request.state.form = form
    return None


def _refused(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status)
