"""The settings of an edge process: one frozen object, built in `__main__` and passed by argument.

The command line overrides the environment (``OVERREAD_EDGE_DEADLINE_S=5``,
``OVERREAD_EDGE_CLOUD__ADDRESS=host:50051``), the environment overrides the TOML file, the file
overrides the defaults. What a part of the edge needs is a table of its own; receiving and targets
have modules beside this one.
"""

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from edge.errors import BadSettings
from edge.settings.receive import ReceiveSettings
from edge.settings.targets import TargetSettings
from process.settings import MAX_S, InvalidSettings, ListenAddress, ProcessSettings, Table, load
from process.tls import ServerTlsFiles, TlsFiles, is_address, is_loopback, replicas_of
from process.tracing import Traces
from protos.messages import MAX_SITE_CHARACTERS

_PRINTABLE = r"^([!-~]([ -~]*[!-~])?)?$"  # what may stand in gRPC's metadata
CLOUD_OFF = "off"
MB = 1_000_000
"""Bytes of a megabyte, in which settings give sizes."""


class CloudClientSettings(Table):
    """Which cloud reads again, and what is sent to it.

    Attributes:
        address: ``HOST:PORT`` of the cloud, several with commas between them, or ``off``; None for
            no second reading.
        replicas: largest number of replicas of a cloud to which the edge is connected at a time.
        fallback: ``HOST:PORT`` of a second, separate cloud, used while the first is down or
            refuses.
        tls: files of TLS with both clouds; setting ``ca`` enables it.
        insecure: whether ROIs may be sent to another machine without TLS.
        model: required major version of the cloud's model; empty for any.
        health_check_s: pause between two health checks, at most 1 s while the cloud is down;
            0: no health checks; each study probes the cloud itself.
        max_rois: largest number of ROIs that a study sends.
        characterize: whether findings that the edge reports by itself are also sent, for their
            size, type and outline.
        audit_rate: fraction of the studies without an uncertain candidate whose best dismissed
            candidates are sent anyway; 0 for none.
    """

    address: str | None = None
    replicas: int = Field(default=4, ge=1)
    fallback: str | None = None
    tls: TlsFiles = Field(default_factory=TlsFiles)
    insecure: bool = False
    model: str = ""
    health_check_s: float = Field(default=5.0, ge=0, le=MAX_S)
    max_rois: int = Field(default=100, ge=1)
    characterize: bool = True
    audit_rate: float = Field(default=0.05, ge=0, le=1)

    @property
    def remote(self) -> list[str]:
        """The addresses of clouds on other machines."""
        clouds = (self.address, self.fallback)
        return [one for one in clouds if one is not None and not is_loopback(one)]

    @field_validator("address", "fallback")
    @classmethod
    def _host_and_port(cls, cloud: str | None) -> str | None:
        if cloud is None or cloud == CLOUD_OFF:
            return None
        for one in replicas_of(cloud):
            if not is_address(one) or not one.rpartition(":")[2].strip("0"):
                raise ValueError("invalid address, expected HOST:PORT or off")
        return cloud

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if self.fallback is not None and self.fallback == self.address:
            raise ValueError("fallback must differ from address")
        if self.tls.cert is not None and self.tls.ca is None:
            raise ValueError("tls.cert requires tls.ca")
        if self.remote and self.tls.ca is None and not self.insecure:
            raise ValueError(
                f"{self.remote[0]} is another machine, and tls.ca is not set: pictures of"
                " patients would be sent unencrypted; set tls.ca, or insecure = true (--insecure)"
                " where the network itself is protected"
            )
        return self


class PageSettings(Table):
    """Where the status page is served, and who may see it.

    Attributes:
        address: ``HOST:PORT`` of the status page; port 0 is a free one, empty: off. Another one
            than loopback requires TLS, and a password or client certificates.
        password_file: file of users, a line ``NAME:ROLE:HASH`` each; the role is ``reader`` or
            ``operator``.
        tls: files of TLS; ``cert`` and ``key`` enable it. Certificates that ``ca`` has signed open
            the page without password, and name the user.
        proxies: addresses of proxies that sign users in, or names in their client certificates.
        proxy_header: header in which a proxy names the user; from other callers it does not count.
        operators: users with a certificate or from a proxy who are operators; others are readers.
    """

    address: ListenAddress = ""
    password_file: Path | None = None
    tls: ServerTlsFiles = Field(default_factory=ServerTlsFiles)
    proxies: tuple[str, ...] = ()
    proxy_header: str = Field(
        default="X-Forwarded-User", pattern=r"^[A-Za-z0-9-]+$", description="name of a header"
    )
    operators: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _proxies_are_known(self) -> Self:
        for proxy in self.proxies:
            try:
                ip_address(proxy)
            except ValueError:
                if proxy and self.tls.ca is not None:
                    continue
                hint = "names in client certificates need tls.ca"
                raise ValueError(f"proxies: {proxy!r} is no IP address, and {hint}") from None
        return self

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if not self.address or is_loopback(self.address):
            return self
        reached = f"other machines reach address = {self.address}"
        if self.tls.cert is None:
            raise ValueError(
                f"{reached}, and tls.cert is not set: names and pictures of patients would be sent"
                " unencrypted; set tls.cert and tls.key, or keep address at 127.0.0.1"
            )
        if self.password_file is None and self.tls.ca is None and not self.proxies:
            raise ValueError(
                f"{reached}, and everyone could look at patients: set password_file, tls.ca or"
                " proxies"
            )
        return self


class ModelSettings(Table):
    """Which models may run, and whether new ones are fetched.

    Attributes:
        folder: folder with the models and their manifest; None: the package's.
        keys: files of public keys, one of which must have signed the manifest of the models;
            empty: no signature is required.
        fetch: whether the agent fetches the model that the cloud offers, once a day, and tries it
            in shadow. It is never promoted by itself.
    """

    folder: Path | None = None
    keys: tuple[Path, ...] = ()
    fetch: bool = False


class RetentionSettings(Table):
    """When studies that are done and their reports are removed.

    Attributes:
        studies_days: days after which the files of a study that is done are removed; None: never.
        studies_gb: largest size of all these in gigabytes; beyond it, the oldest are removed.
        reports_days: days after which a report that cannot change is removed; None: never.
        reports_gb: largest size of all these in gigabytes; beyond it, the oldest are removed.
    """

    studies_days: float | None = Field(default=None, gt=0, le=36_500.0)
    studies_gb: float | None = Field(default=None, gt=0)
    reports_days: float | None = Field(default=None, gt=0, le=36_500.0)
    reports_gb: float | None = Field(default=None, gt=0)


class PendingSettings(Table):
    """When a pending read is given up.

    Attributes:
        max_days: days of running time after which a pending read is given up.
        max_mb: largest size of the database in megabytes; beyond it, the oldest pending read is
            given up, characterizations of findings first.
    """

    max_days: float = Field(default=30.0, gt=0, le=36_500.0)
    max_mb: float = Field(default=2000.0, ge=1)


class EdgeSettings(ProcessSettings):
    """All settings of the edge; units are in the names.

    Attributes:
        inbox: folder that is watched for studies.
        outbox: folder for the reports, a sub-folder each; must lie outside ``inbox``.
        state_dir: folder for the database and for claimed, finished and quarantined studies; must
            lie outside ``inbox``.
        quiet_s: a study without a ``.done`` file is complete after this time without a change.
        poll_s: pause between two polls of the inbox. The pause for a full disk or a locked
            database, and after a failed retry, is ten times as long.
        deadline_s: budget of a study from the moment it is complete in the inbox. It limits the
            wait for the cloud. The edge's own stages are not cut short: a report after the deadline
            is counted as late.
        reserve_s: part of the budget that is reserved for merging, drawing and writing the report.
        site: name of this site, used by the cloud for quotas. The name in a client certificate
            takes precedence. Empty for none.
        priority: of studies that no rule gives another one.
        screening_model: name of the model that reads on the edge.
        engine: ``openvino``, ``openvino:DEVICE``, ``onnxruntime`` or ``onnxruntime:PROVIDER``;
            ``auto`` for the fastest that is correct.
        threads: threads of the inference engine; 0 for all cores.
        series: UID, number or description of the series to read; ``*`` and ``?`` stand for any
            letters and any letter. Empty: the pixels decide. A study without such a series is
            rejected.
        rules: TOML file of rules that choose the series and say what happens to it; None for none.
        read_memory_mb: largest memory, in megabytes, of each of the two processes that read
            studies; a study that needs more is rejected.
        log_format: form of the log on standard error.
        metrics_address: ``HOST:PORT`` of the metrics; port 0 is a free one, empty: off.
        traces: where traces go: the OTLP address of a collector, with ``http://`` or ``https://``,
            or a file; empty: nowhere.
        cloud: who reads again.
        receive: studies that come over the network.
        targets: where result objects are sent.
        page: the status page.
        models: which models may run, and new ones.
        retention: when studies and reports are removed.
        pending: when pending reads are given up.
    """

    model_config = SettingsConfigDict(env_prefix="OVERREAD_EDGE_")

    inbox: Path = Path("inbox")
    outbox: Path = Path("outbox")
    state_dir: Path = Path("state")
    quiet_s: float = Field(default=5.0, gt=0, le=MAX_S)
    poll_s: float = Field(default=0.5, gt=0, le=MAX_S)
    deadline_s: float = Field(default=10.0, gt=0, le=MAX_S)
    reserve_s: float = Field(default=2.0, ge=0, le=MAX_S)
    site: str = Field(
        default="",
        max_length=MAX_SITE_CHARACTERS,
        pattern=_PRINTABLE,
        description=f"at most {MAX_SITE_CHARACTERS} ASCII characters, without spaces at the ends",
    )
    priority: Literal["routine", "stat"] = "routine"
    screening_model: str = "screening-int8"
    engine: str = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    series: str = Field(default="", max_length=128, coerce_numbers_to_str=True)
    rules: Path | None = None
    read_memory_mb: int = Field(default=3500, ge=500)
    log_format: Literal["text", "json"] = "text"
    metrics_address: ListenAddress = ""
    traces: Traces = ""

    cloud: CloudClientSettings = Field(default_factory=CloudClientSettings)
    receive: ReceiveSettings = Field(default_factory=ReceiveSettings)
    targets: tuple[TargetSettings, ...] = Field(
        default=(), description="a list of tables, each as [[targets]]"
    )
    page: PageSettings = Field(default_factory=PageSettings)
    models: ModelSettings = Field(default_factory=ModelSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    pending: PendingSettings = Field(default_factory=PendingSettings)

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        inbox = os.path.realpath(self.inbox)
        for name, folder in (("outbox", self.outbox), ("state_dir", self.state_dir)):
            if Path(os.path.realpath(folder)).is_relative_to(inbox):
                raise ValueError(
                    f"{name} must lie outside inbox, otherwise its files would be read as studies"
                )
        if Path(inbox).is_relative_to(os.path.realpath(self.state_dir)):
            raise ValueError("inbox must lie outside state_dir")
        if self.cloud.address is not None and self.deadline_s <= self.reserve_s:
            raise ValueError(
                f"deadline_s = {self.deadline_s:g} leaves no time for the cloud, expected more"
                f" than reserve_s = {self.reserve_s:g}; increase deadline_s, decrease reserve_s, or"
                " set cloud.address to off"
            )
        names = [target.name for target in self.targets]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"targets: two have the name {twice}, expected one name for each")
        if self.models.fetch and (self.cloud.address is None or not self.models.keys):
            raise ValueError(
                "models.fetch requires cloud.address, and models.keys: only a signed model is taken"
                " from a cloud; set models.keys to the public keys of who may sign models"
            )
        return self


def load_settings(config: Path | None = None, **overrides: object) -> EdgeSettings:
    """Load the settings of this process.

    ``config`` is a TOML file, None for environment and defaults alone. The overrides come from the
    command line, and name a setting in a table as variables do: ``cloud__address``. None stands for
    an option that is not set.

    Raises:
        BadSettings: the file cannot be read, a name is unknown, or a value is not allowed.
    """
    try:
        return load(EdgeSettings, config, overrides)
    except InvalidSettings as error:
        raise BadSettings(str(error)) from error
