"""Who may see the status page, and who may also change something.

A user comes by password, by client certificate, through a proxy that names him, or as everyone on
this machine. A login is kept in Starlette's session, a signed cookie; its key changes at every
start. A login that cannot be audited is refused. What a user of a password may, and whether he is
one still, the file of users says at each request. Failed logins refuse nobody: they take time.

The guard is before all pages: who calls, from which page, with which form; and safe headers. GET
and HEAD change nothing but the audit trail. A POST needs a user, an ``Origin`` that is this server,
and the user's form token; all but `READERS_POST` are for operators. A form is read here and nowhere
else, up to `MAX_BODY`.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any
from urllib.parse import parse_qsl, quote
from weakref import WeakValueDictionary

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.audit import Event, Person
from edge.errors import BadSettings, EdgeError
from edge.settings.receive import plain_address
from edge.site import Site
from edge.status.users import (
    MAX_NAME,
    NAMELESS_USER,
    NOBODY,
    Account,
    Role,
    is_name,
    is_password,
    load_users,
)
from process.http import SlowBody, body_parts, certificate_names
from process.tls import is_loopback

SESSION_S = 8 * 3600.0
"""A session ends this long after its login."""
FAILED_S = 0.5
"""A failed login takes so much longer; no other is checked meanwhile."""

MAX_BODY, BODY_S = 8192, 10.0
"""Bytes of a form, and the time in which it must arrive."""
MAX_PATH = 200
"""Letters of a path; all that lead to a page are shorter."""
TOKEN = "token"
"""Name of the form token in a form; as a header it is `TOKEN_HEADER`."""
TOKEN_HEADER = "x-form-token"
FORWARDED = "proto", "prefix", "for"
PREFIX = re.compile(r"(/[\w.~-]+)+", re.ASCII)
"""A base path that leads to no other server."""
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
        is_proxy = self._is_proxy(address, certificate)
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

    def follow(self, scope: Scope) -> None:
        """Take from a proxy how the caller reaches it: by TLS, under which path, and from where.

        ``X-Forwarded-Proto``, ``-Prefix`` and ``-For`` count from this machine and from
        `page.proxies`. The prefix is what the proxy has taken from the path.
        """
        request, headers = Request(scope), Headers(scope=scope)
        scope["caller"] = address = address_of(request)
        if not (is_loopback(f"{address}:0") or self._is_proxy(address, _certificate(request))):
            return
        proto, prefix, callers = (headers.get(f"x-forwarded-{name}", "") for name in FORWARDED)
        scope["caller"] = callers.rpartition(",")[2].strip() or address
        if proto == "https":
            scope["scheme"] = proto
        if PREFIX.fullmatch(prefix := prefix.rstrip("/")):
            scope.update(root_path=prefix, path=f"{prefix}{scope['path']}")

    def _is_proxy(self, address: str, certificate: str) -> bool:
        return bool({address, certificate} & set(self._page.proxies))

    def log_in(self, session: Session, name: str, text: str, address: str) -> None:
        """Begin a session by name and password; the name does not count where users have none.

        Raises:
            LoginRefused: name or password are wrong, the login cannot be audited, or the file of
                users cannot be read.
        """
        users = self._users()
        name = name[:MAX_NAME] if self.asks_name else NAMELESS_USER
        account = users.get(name)
        # an unknown name takes as long as a wrong password
        is_right = is_password(text, account.hash if account else NOBODY)
        if account is None or not is_right:
            # a name that nobody has may be a password in the wrong field
            who, why = (name, "wrong password") if account else ("unknown", "unknown user")
            person = Person(who, address)
            audited(self._site, Event.LOGIN, person, outcome="failure", reason=why)
            log.warning("login to the status page failed", address=address)
            raise LoginRefused(403, "The user name or the password is wrong.")
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


class Attempts:
    """The order of logins: one is checked at a time, and none is refused for others.

    Networks take turns, and so do the names that come from one. So a flood delays little but those
    who share its network, and most of all its name.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._lanes = WeakValueDictionary[object, asyncio.Lock]()

    async def take(self, request: Request, name: str, check: Callable[[], None]) -> None:
        """Call ``check`` in a thread once it is its turn, and pass on what it raises.

        Raises:
            ClientDisconnect: the caller has left before; nothing was checked.
        """
        network = network_of(request.scope["caller"])
        lanes = [self._lanes.setdefault(k, asyncio.Lock()) for k in ((network, name), network)]
        async with AsyncExitStack() as held:
            for lane in (*lanes, self._turn):
                await held.enter_async_context(lane)
                if await request.is_disconnected():  # it would make others wait
                    raise ClientDisconnect
            try:
                await run_in_threadpool(check)
            except LoginRefused:
                await asyncio.sleep(FAILED_S)
                raise


def network_of(address: str) -> str:
    """Return from which network somebody comes: of IPv6 the first half of the address."""
    try:
        at = plain_address(address)
    except ValueError:
        return address
    return str(ip_network((at, 64 if at.version == 6 else 32), strict=False))


def _single(named: Sequence[str]) -> str:
    """Return the one name that a header has, as UTF-8; empty if it has none, two, or an odd one."""
    try:
        name = named[0].encode("latin-1").decode() if len(named) == 1 else ""
    except UnicodeError:
        return ""
    return name if is_name(name) else ""


class Guard:
    """The pages of ``app`` for whom ``authenticator`` admits; needs Starlette's sessions.

    ``secure`` says that this server has TLS; else HSTS is up to the proxy, for all that it serves.
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
        path, method = path_of(request), request.method
        host = request.headers.get("host", "")
        is_bare = ":" not in host or (host[0], host[-1]) == ("[", "]")  # without a port
        if self._authenticator.is_open and not is_loopback(f"{host}:0" if is_bare else host):
            # a page of another site whose name leads to this machine would be the same origin
            return _refused(421, "This page is for this machine alone: use http://localhost.")
        if len(path) > MAX_PATH:
            return _refused(404, "There is no such page.")
        if method not in ("GET", "HEAD", "POST"):
            return _refused(405, "Only GET, HEAD and POST.")
        if method == "POST" and request.headers.get("origin", "").partition("://")[2] != host:
            return _refused(403, "The request comes from another page than this one.")
        if path.startswith("/static/"):
            return None
        certificate, address = _certificate(request), address_of(request)
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
            login = f"{request.scope['root_path']}/login?next={quote(path, safe='')}"
            if request.headers.get("sec-fetch-site") != "cross-site":
                return RedirectResponse(login, 303)
            # a link of another system: the browser sends its cookie only where a page of ours leads
            return HTMLResponse(f'<meta http-equiv="refresh" content="0; url={login}">')
        if method == "POST" and user and not (user.is_operator or READERS_POST.fullmatch(path)):
            return _refused(403, f"Only an operator may do this. {user.name} is a reader.")
        token = user.form_token if user else self._authenticator.token(LOGIN)
        return await _read_form(request, token) if method == "POST" else None


def path_of(request: Request) -> str:
    """Return the path of a page, without the base path of a proxy."""
    return str(request.scope["path"]).removeprefix(request.scope["root_path"])


def to(request: Request, path: str) -> RedirectResponse:
    """Lead on to a page of this server."""
    return RedirectResponse(f"{request.scope['root_path']}{path}", 303)


def _certificate(request: Request) -> str:
    names = certificate_names(request)
    return "" if names is None else next(iter(names), NAMELESS)


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
    if not length.isdecimal() or int(length) > MAX_BODY:
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
