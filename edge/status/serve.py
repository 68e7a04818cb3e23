"""Open the status page of an agent."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from edge.drift.monitor import DriftMonitor
from edge.folders import AgentFolders
from edge.guarantee import NOT_CALIBRATED, Guarantee
from edge.link.estimate import LinkEstimate
from edge.models.live import LiveModels
from edge.settings.core import EdgeSettings
from edge.site import Site
from edge.status.deliveries import Deliveries, StoredDeliveries
from edge.status.login import Authenticator, Password
from edge.status.models import ModelsView
from edge.status.pages import Sources, application
from edge.status.state import SiteState
from edge.status.volumes import Volumes
from edge.web import Listener, serving
from process.http import host_and_port


def listener(settings: EdgeSettings) -> Listener:
    """Return where the status page is served.

    A client certificate is required where there is no password; else it takes its place.
    """
    host, port = host_and_port(settings.page.address)
    required = settings.page.password_file is None
    return Listener(host, port, settings.page.tls, required, "page.address")


@contextmanager
def serve_status(
    site: Site,
    state: SiteState,
    drift: DriftMonitor,
    *,
    model: str = "",
    guarantee: Guarantee = NOT_CALIBRATED,
    links: Callable[[], Mapping[str, LinkEstimate]] = dict,
    alive: Callable[[], str] = lambda: "",
    deliveries: Deliveries | None = None,
    live: LiveModels | None = None,
) -> Iterator[str | None]:
    """Serve the status page while entered; yield its URL, None if it is off.

    Raises:
        BadSettings: the password or a file of TLS cannot be used, or the port is taken.
    """
    settings = site.settings
    if not settings.page.address:
        yield None
        return
    at, file = listener(settings), settings.page.password_file
    password = None if file is None else Password.load(file)
    by_certificate = settings.page.tls.ca is not None
    authenticator = Authenticator(password, site, by_certificate=by_certificate)
    volumes = Volumes(state, settings)
    if deliveries is None and settings.targets:
        deliveries = StoredDeliveries(site)
    models = None if live is None else ModelsView(site, live)
    sources = Sources(
        site, state, volumes, drift, model, guarantee, links, alive, deliveries, models
    )
    try:
        app = application(sources, authenticator, secure=at.encrypted)
        with serving(app, at, "status page") as url:
            yield url
    finally:
        volumes.close()


def state_of(settings: EdgeSettings) -> SiteState:
    """Return what can be read of this agent's folders and database."""
    return SiteState(AgentFolders.of(settings), settings.quiet_s)
