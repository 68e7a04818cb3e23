"""The guard before all pages: who calls, from which page, with which form; and safe headers.

GET and HEAD change nothing. A POST needs a user, an ``Origin`` that is this server, and the user's
form token. A form is read here and nowhere else, up to `MOST_BODY`.
"""

from hmac import compare_digest
from urllib.parse import parse_qsl, quote, urlsplit

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.status.login import Authenticator, LoginRefused
from process.http import certificate_names
from process.tls import is_loopback

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

log = structlog.get_logger()


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
        if self._authenticator.is_open and not is_loopback(_with_port(host)):
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
    if not compare_digest(given.encode(), token.encode()):
        return _refused(403, "The form is too old: go back, load the page again, repeat.")
    request.state.form = form
    return None


def _with_port(host: str) -> str:
    """Return ``HOST:PORT`` for what may be the host alone."""
    bare = host.startswith("[") and host.endswith("]")
    return f"{host}:0" if bare or ":" not in host else host


def _refused(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status)
