"""The status page as a part of the agent."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from edge.checks import Checked, Level, Results, mode, secrets
from edge.part import Part
from edge.settings.core import EdgeSettings
from edge.site import Site
from edge.status.login import Authenticator, Password
from edge.status.pages import application
from edge.status.volumes import Volumes, forget_voxels
from process.http import Listener, serving

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
        if file is not None:
            Password.load(file)
            if mode(file) & 0o077:
                text = f"{file} can be read by others: chmod go-rwx"
                yield Checked(Level.WRONG, "status", text)
        elif not at.encrypted or page.tls.ca is None:
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
            BadSettings: the password cannot be used.
            CannotListen: the port is taken, or a file of TLS cannot be used.
        """
        settings = self.agent.site.settings
        if not settings.page.address:
            yield
            return
        at, file = listener(settings), settings.page.password_file
        password = None if file is None else Password.load(file)
        by_certificate = settings.page.tls.ca is not None
        who = Authenticator(password, self.agent.site, by_certificate=by_certificate)
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

    A client certificate is required where there is no password; else it takes its place.
    """
    page = settings.page
    callers = ssl.CERT_REQUIRED if page.password_file is None else ssl.CERT_OPTIONAL
    return Listener(page.address, "page.address", page.tls, callers, stop_s=STOP_S)
