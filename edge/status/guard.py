"""The guard before all pages: who calls, from which page, with which form; and safe headers.

GET and HEAD change nothing. A POST needs a visitor, an ``Origin`` that is this server, and the
visitor's form token. A body is read here and nowhere else, up to `MOST_BODY`.
"""

from hmac import compare_digest
from urllib.parse import parse_qs, quote, urlsplit

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.status.login import Door, Visitor
from edge.status.logins import LoginTrail
from edge.trail.records import Person
from edge.web import CLIENT
from process.tls import is_loopback

MOST_BODY = 8192
TOKEN = "token"
"""Name of the form token in a form; as a header it is `TOKEN_HEADER`."""
TOKEN_HEADER = "x-form-token"
LOGIN = "login"
"""The purpose of the form token of the login page."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "sandbox allow-popups; default-src 'none'; img-src data:; style-src 'unsafe-inline';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the report's own page, which has its style and its pictures inside."""

_PUBLIC = ("/login", "/static/")

log = structlog.get_logger()


class Guard:
    """The pages behind ``door``; ``secure`` says that the way to them is encrypted.

    ``logins`` records visitors with a certificate; pages record those with a password.
    """

    def __init__(self, app: ASGIApp, door: Door, logins: LoginTrail, *, secure: bool) -> None:
        self._app, self._door, self._logins, self._secure = app, door, logins, secure
        self.cookie = "__Host-overread" if secure else "overread"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request, has_begun = Request(scope, receive), False

        async def send_safely(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                self._add_headers(MutableHeaders(scope=message))
            await send(message)

        state = scope.setdefault("state", {})
        visitor = self._door.visitor(
            request.cookies.get(self.cookie, ""), str(state.get(CLIENT, ""))
        )
        state["visitor"] = visitor
        if visitor is not None and not visitor.by_password and not self._door.is_open:
            address = request.client.host if request.client else ""
            await run_in_threadpool(self._logins.came, Person(visitor.name, address))
        answer = self._refusal(request, visitor)
        if answer is None and request.method == "POST":
            answer = await self._read_form(request, visitor)
        try:
            await (answer or self._app)(scope, receive, send_safely)
        except Exception:  # whatever it is, the server goes on; the path has keys, and no names
            log.exception("status page failed", path=scope["path"])
            if not has_begun:
                failed = _refused(500, "This page could not be made. The agent's log says why.")
                await failed(scope, receive, send_safely)

    def _refusal(self, request: Request, visitor: Visitor | None) -> Response | None:
        """Return the answer to a request that may not go on, None for one that may."""
        path, method = request.url.path, request.method
        if self._door.is_open and not is_loopback(_with_port(request.headers.get("host", ""))):
            # a page of another site whose name leads to this machine would be the same origin
            return _refused(421, "This page is for this machine alone: use http://localhost.")
        if method not in ("GET", "HEAD", "POST"):
            return _refused(405, "Only GET, HEAD and POST.")
        if method == "POST" and not _is_own_origin(request.headers):
            return _refused(403, "The request comes from another page than this one.")
        if visitor is not None or path.startswith(_PUBLIC):
            return None
        is_page = request.headers.get("sec-fetch-dest", "document") == "document"
        if method == "POST" or not is_page or not self._door.takes_password:
            return _refused(401, "Log in first.")
        return RedirectResponse(f"/login?next={quote(path, safe='')}", 303)

    async def _read_form(self, request: Request, visitor: Visitor | None) -> Response | None:
        """Read the form into the request's state; return the answer to one that is refused."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST_BODY:
                return _refused(413, "The form is too long.")
        try:
            fields = parse_qs(body.decode("utf-8"), max_num_fields=20, keep_blank_values=True)
        except ValueError:
            return _refused(400, "The form is damaged.")
        form = {name: values[0] for name, values in fields.items()}
        given = request.headers.get(TOKEN_HEADER) or form.get(TOKEN, "")
        expected = [visitor.form_token] if visitor else []
        expected += [self._door.token(LOGIN)] if request.url.path == "/login" else []
        if not any(_same(given, one) for one in expected):
            return _refused(403, "The form is too old: go back, load the page again, repeat.")
        request.state.form = form
        return None

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers.setdefault("content-security-policy", POLICY)
        headers.setdefault("cache-control", "no-store")
        headers["x-content-type-options"] = "nosniff"
        headers["x-frame-options"] = "DENY"
        # not no-referrer: with it browsers send forms without their origin
        headers["referrer-policy"] = "same-origin"
        headers["cross-origin-opener-policy"] = "same-origin"
        headers["cross-origin-resource-policy"] = "same-origin"
        headers["permissions-policy"] = "camera=(), microphone=(), geolocation=()"
        if self._secure:
            headers["strict-transport-security"] = "max-age=31536000"


def _is_own_origin(headers: Headers) -> bool:
    """Tell whether a form was sent by a page of this server."""
    origin = urlsplit(headers.get("origin", ""))
    return origin.netloc != "" and origin.netloc == headers.get("host", "")


def _with_port(host: str) -> str:
    """Return ``HOST:PORT`` for what may be the host alone."""
    bare = host.startswith("[") and host.endswith("]")
    return f"{host}:0" if bare or ":" not in host else host


def _same(given: str, expected: str) -> bool:
    return compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _refused(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status)
