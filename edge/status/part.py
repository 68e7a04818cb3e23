"""The status page as a part of the agent."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from edge.checks import Checked, Level, Results, mode, secrets
from edge.part import Part
from edge.settings.core import EdgeSettings
from edge.site import Site
from edge.status.login import Authenticator
from edge.status.pages import application
from edge.status.users import Role, load_users
from edge.status.volumes import Volumes, forget_voxels
from process.http import Listener, serving
from process.tls import is_loopback

STOP_S = 2.0
"""Time that open requests have at the end."""

log = structlog.get_logger()


class PagePart(Part):
    """Serves the status page where an address is set."""

    name = "status"

    @classmethod
    def checks(cls, site: Site) -> Results:
        """Yield where the page is served, and who may see it."""
        page = site.settings.page
        if not page.address:
            yield Checked(Level.OK, "status", "no status page: page.address is not set")
            return
        at, file = listener(site.settings), page.password_file
        problems = at.tls.problems()
        for problem in problems:
            yield Checked(Level.WRONG, "status", problem)
        if problems:
            return
        yield from secrets("status", page.tls.key)
        for warning in at.tls.warnings():
            yield Checked(Level.NOTE, "status", warning)
        is_open = file is None and page.tls.ca is None and not page.proxies
        roles = [one.role for one in load_users(file).values()] if file else []
        if not (is_open or page.operators or Role.OPERATOR in roles):
            text = "nobody is an operator: no button of the page can be used; docs/operate.md"
            yield Checked(Level.NOTE, "status", text)
        for proxy in page.proxies:
            if is_loopback(f"{proxy}:0"):
                text = f"page.proxies has {proxy}: every user of this machine may give any name"
                yield Checked(Level.NOTE, "status", text)
        if file is not None:
            if mode(file) & 0o077:
                text = f"{file} can be read by others: chmod go-rwx"
                yield Checked(Level.WRONG, "status", text)
        elif is_open:
            text = (
                "the status page has no password: every user of this machine sees names and"
                " pictures of patients; set page.password_file"
            )
            yield Checked(Level.NOTE, "status", text)
        how = "TLS" if at.encrypted else "no encryption, this machine alone"
        yield Checked(Level.OK, "status", f"at {page.address}, {how}")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Serve the page.

        Raises:
            BadSettings: the file of users cannot be used.
            CannotListen: the port is taken, or a file of TLS cannot be used.
        """
        settings = self.agent.site.settings
        if not settings.page.address:
            yield
            return
        at, file = listener(settings), settings.page.password_file
        if file is not None:
            load_users(file)
        who = Authenticator(self.agent.site)
        volumes = Volumes(self.agent.site)
        try:
            app = application(self.agent, volumes, who, secure=at.encrypted)
            with serving(app, at) as bound:
                log.info("status page served", url=bound.url)
                yield
        finally:
            volumes.close()

    def forget(self, key: str) -> None:
        """Delete the voxels of a study that somebody has looked at."""
        forget_voxels(self.agent.site.folders.viewer, key)


def listener(settings: EdgeSettings) -> Listener:
    """Return where the status page is served.

    A client certificate is required where there is no password and no proxy; else it takes their
    place.
    """
    page = settings.page
    others = page.password_file is not None or page.proxies
    callers = ssl.CERT_OPTIONAL if others else ssl.CERT_REQUIRED
    return Listener(page.address, "page.address", page.tls, callers, stop_s=STOP_S)
