"""The settings of an edge process: one frozen object, built in `__main__` and passed by argument.

The command line overrides the environment (``OVERREAD_EDGE_DEADLINE_S=5``), the environment
overrides the TOML file, the file overrides the defaults.
"""

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

from edge.errors import BadSettings
from edge.settings.targets import TargetSettings
from process.endpoints import address_text
from process.settings import InvalidSettings, ProcessSettings, load
from process.tls import TlsFiles, grpc_target, is_address, is_loopback, replicas_of
from process.tracing import problem_of
from protos.metadata import MAX_SITE_CHARACTERS

CLOUD_OFF = "off"
LONGEST_S = 31_536_000.0
"""Largest time in seconds: a year. Threads cannot wait for arbitrarily long."""
_AE_TITLE = r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$"
_AE_EXPECTED = "1 to 16 ASCII characters without a backslash, and without spaces at the ends"
_PRINTABLE = r"^([!-~]([ -~]*[!-~])?)?$"  # what may stand in gRPC's metadata


@dataclass(frozen=True)
class Peer:
    """Who may open associations: a calling AE title, and from which network; None for any."""

    ae_title: str
    network: IPv4Network | IPv6Network | None = None

    @classmethod
    def of(cls, text: str) -> "Peer":
        """Read ``AE`` or ``AE@ADDRESS``; the address may be a network, as in 10.1.0.0/16.

        Raises:
            ValueError: it is none.
        """
        title, at, address = text.rpartition("@") if "@" in text else (text, "", "")
        if not re.fullmatch(_AE_TITLE, title):
            raise ValueError(f"{text!r}: expected an AE title of {_AE_EXPECTED}")
        try:
            return cls(title, ip_network(address) if at else None)
        except ValueError:
            raise ValueError(
                f"{text!r}: expected AE@ADDRESS, with an IP address or a network"
            ) from None

    def admits(self, ae_title: str, address: str) -> bool:
        """Tell whether this AE title may call from this IP address."""
        if ae_title != self.ae_title:
            return False
        return self.network is None or plain_address(address) in self.network


def plain_address(text: str) -> IPv4Address | IPv6Address:
    """Return an IP address; an IPv4 address that came through an IPv6 socket as IPv4."""
    address = ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def _files(ca: Path | None, cert: Path | None, key: Path | None, prefix: str) -> TlsFiles:
    return TlsFiles.model_construct(ca=ca, cert=cert, key=key).named(prefix)


class EdgeSettings(ProcessSettings):
    """All settings of the edge; units are in the names.

    ``docs/reference.md`` lists them; here is what names, types and defaults do not say.

    Attributes:
        outbox: folder for the reports, a sub-folder each; must lie outside ``inbox``.
        state_dir: folder for the database and for claimed, finished and quarantined studies; must
            lie outside ``inbox``.
        quiet_s: a study without a ``.done`` file is complete after this time without a change.
        cloud: ``HOST:PORT`` of the cloud; None for no second reading.
        cloud_fallback: ``HOST:PORT`` of a second, separate cloud, used while the first is down or
            refuses.
        deadline_s: budget of a study from the moment it is complete in the inbox. It limits the
            wait for the cloud. The edge's own stages are not cut short: a report after the deadline
            is counted as late.
        reserve_s: part of the budget that is reserved for merging, drawing and writing the report.
        health_check_s: pause between two health checks, at most 1 s while the cloud is down;
            0: no health checks; each study probes the cloud itself.
        startup_grace_s: startup grace period: for this long after start, studies wait for the first
            successful health check. No effect without health checks.
        site: name of this site, used by the cloud for quotas. The name in a client certificate
            takes precedence. Empty for none.
        characterize: whether findings that the edge reports by itself are also sent, for their
            size, type and outline.
        audit_rate: fraction of the studies without an uncertain candidate whose best dismissed
            candidates are sent anyway; 0 for none.
        pending_max_days: days of running time after which a pending read is given up.
        pending_max_mb: largest size of the database in megabytes; beyond it, the oldest pending
            read is given up.
        keep_done_days: days after which the files of a study that is done are removed; None: never.
        keep_done_gb: largest size of all these in gigabytes; beyond it, the oldest are removed.
        keep_reports_days: days after which a report that cannot change is removed; None: never.
        keep_reports_gb: largest size of all these in gigabytes; beyond it, the oldest are removed.
        retry_pause_s: pause after the first failed retry of a pending read. It doubles up to 5
            minutes if the cloud did not respond, and up to an hour for a study that it refused.
        cloud_model: required major version of the cloud's model; empty for any.
        model_folder: folder with the models and their manifest; None: the package's.
        model_keys: files of public keys, one of which must have signed the manifest of the models;
            empty: no signature is required.
        fetch_models: whether the agent fetches the model that the cloud offers, and tries it in
            shadow. It is never promoted by itself.
        fetch_models_hours: time between two looks for a new model.
        shadow_studies: studies that a model must have read in shadow before it may be promoted.
        shadow_agreement: share of the findings of the active model that the new one must put
            forward too, as a finding or to the cloud, before it may be promoted.
        engine: inference engine, or ``auto`` for the fastest that is correct.
        threads: threads of the inference engine; 0 for all cores.
        series: UID, number or description of the series to read; ``*`` and ``?`` stand for any
            letters and any letter. Empty: the pixels decide. A study without such a series is
            rejected.
        rules: TOML file of rules that choose the series and say what happens to it; None for none.
        read_memory_mb: largest memory, in megabytes, of the process that reads a study; a study
            that needs more is rejected.
        read_timeout_s: longest time to read and preprocess a study; one that needs more is
            rejected.
        tls_ca: PEM authority that signed the cloud's certificate; setting it enables TLS.
        insecure: whether ROIs may be sent to another machine, and studies come from one by
            STOW-RS, without TLS.
        targets: where result objects are sent; `edge.settings.targets` has their settings.
        metrics_port: port of the metrics; None: off, 0: a free port.
        traces: where traces go: the OTLP address of a collector, with ``http://`` or ``https://``,
            or a file; empty: nowhere.
        dicom_port: port on which studies are received by C-STORE; None: off, 0: a free port.
        dicom_address: address of that port; other machines reach only another one than loopback.
        dicom_ae_title: AE title of the agent; an association that calls another one is rejected.
        dicom_peers: who may send, ``AE`` or ``AE@ADDRESS``; an address may be a network. Empty:
            every user of this machine.
        dicom_complete_on_release: whether a series is complete when the association that sent all
            of it is released.
        dicom_max_pdu: largest PDU that is received, in bytes.
        dicom_timeout_s: longest silence within an association, and longest time for one PDU.
        dicom_acse_timeout_s: longest time until a connection requests an association.
        dicom_tls_cert: PEM certificate of the agent; with ``dicom_tls_key`` it enables TLS.
        dicom_tls_ca: PEM authority that must have signed the certificates of senders.
        stow_port: port on which studies are received by STOW-RS; None: off, 0: a free port.
        stow_address: address of that port; another one than loopback requires TLS, and a token or
            certificates of the senders.
        stow_token_file: file with the token that senders must name.
        stow_max_requests: largest number of requests that are received at once.
        stow_timeout_s: longest silence within a request.
        stow_complete_on_request: whether a series is complete when the request that sent all of it
            ends. Only for senders that send a series in one request.
        receive_max_instance_mb: largest received instance, in megabytes.
        receive_max_instances: largest number of instances of a series that wait in the inbox.
        receive_min_free_mb: space in megabytes that stays free on the inbox's disk.
        receive_sop_classes: UIDs of the storage classes that are received.
        status_port: port of the status page; None: off, 0: a free port.
        status_password_file: file with the password of the status page, or with its hash.
        status_tls_ca: PEM authority of client certificates, which open the page without password.
    """

    model_config = SettingsConfigDict(env_prefix="OVERREAD_EDGE_")

    inbox: Path = Path("inbox")
    outbox: Path = Path("outbox")
    state_dir: Path = Path("state")
    quiet_s: float = Field(default=5.0, gt=0, le=LONGEST_S)
    poll_s: float = Field(default=0.5, gt=0, le=LONGEST_S)

    cloud: str | None = None
    cloud_fallback: str | None = None
    deadline_s: float = Field(default=10.0, gt=0, le=LONGEST_S)
    reserve_s: float = Field(default=2.0, ge=0, le=LONGEST_S)
    max_attempts: int = Field(default=3, ge=1, le=20)
    health_check_s: float = Field(default=5.0, ge=0, le=LONGEST_S)
    startup_grace_s: float = Field(default=0.5, ge=0, le=30)
    site: str = Field(
        default="",
        max_length=MAX_SITE_CHARACTERS,
        pattern=_PRINTABLE,
        description=f"at most {MAX_SITE_CHARACTERS} ASCII characters, without spaces at the ends",
    )
    max_rois: int = Field(default=64, ge=1)
    characterize: bool = True
    audit_rate: float = Field(default=0.05, ge=0, le=1)
    pending_max_days: float = Field(default=30.0, gt=0, le=36_500.0)
    pending_max_mb: float = Field(default=2000.0, ge=1)
    keep_done_days: float | None = Field(default=None, gt=0, le=36_500.0)
    keep_done_gb: float | None = Field(default=None, gt=0)
    keep_reports_days: float | None = Field(default=None, gt=0, le=36_500.0)
    keep_reports_gb: float | None = Field(default=None, gt=0)
    retry_pause_s: float = Field(default=5.0, gt=0, le=LONGEST_S)
    roi_side: int = Field(default=48, ge=16, le=128)
    priority: Literal["routine", "stat"] = "routine"
    cloud_model: str = ""

    screening_model: str = "screening-int8"
    model_folder: Path | None = None
    model_keys: tuple[Path, ...] = ()
    fetch_models: bool = False
    fetch_models_hours: float = Field(default=24.0, gt=0, le=8760)
    shadow_studies: int = Field(default=20, ge=1, le=500)
    shadow_agreement: float = Field(default=0.95, gt=0, le=1)
    engine: str = "auto"
    threads: int = Field(default=0, ge=0)
    series: str = Field(default="", max_length=128, coerce_numbers_to_str=True)
    rules: Path | None = None
    read_memory_mb: int = Field(default=3500, ge=500)
    read_timeout_s: float = Field(default=60.0, ge=1, le=LONGEST_S)

    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False

    targets: tuple[TargetSettings, ...] = Field(
        default=(), description="a list of tables, each as [[targets]]"
    )

    log_format: Literal["text", "json"] = "text"
    metrics_address: str = "127.0.0.1"
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    traces: str = ""

    dicom_port: int | None = Field(default=None, ge=0, le=65535)
    dicom_address: str = "127.0.0.1"
    dicom_ae_title: str = Field(default="OVERREAD", pattern=_AE_TITLE, description=_AE_EXPECTED)
    dicom_peers: tuple[str, ...] = Field(
        default=(), description='a list such as ["SCANNER@10.1.2.3", "PACS@10.2.0.0/16", "OTHER"]'
    )
    dicom_complete_on_release: bool = False
    dicom_max_associations: int = Field(default=10, ge=1, le=100)
    dicom_max_pdu: int = Field(default=131_072, ge=4096, le=1_048_576)
    dicom_timeout_s: float = Field(default=60.0, ge=1, le=LONGEST_S)
    dicom_acse_timeout_s: float = Field(default=30.0, ge=1, le=LONGEST_S)
    dicom_tls_ca: Path | None = None
    dicom_tls_cert: Path | None = None
    dicom_tls_key: Path | None = None

    stow_port: int | None = Field(default=None, ge=0, le=65535)
    stow_address: str = "127.0.0.1"
    stow_token_file: Path | None = None
    stow_max_requests: int = Field(default=4, ge=1, le=100)
    stow_timeout_s: float = Field(default=60.0, ge=1, le=LONGEST_S)
    stow_complete_on_request: bool = False
    stow_tls_ca: Path | None = None
    stow_tls_cert: Path | None = None
    stow_tls_key: Path | None = None

    receive_max_instance_mb: int = Field(default=1024, ge=1, le=4000)
    receive_max_instances: int = Field(default=10_000, ge=1, le=20_000)
    receive_min_free_mb: int = Field(default=1000, ge=1)
    receive_sop_classes: tuple[str, ...] = Field(
        default=(CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage),
        min_length=1,
        description="a list of UIDs of storage classes",
    )

    @property
    def dicom_tls(self) -> TlsFiles:
        """The files of TLS for C-STORE."""
        return _files(self.dicom_tls_ca, self.dicom_tls_cert, self.dicom_tls_key, "dicom_tls_")

    @property
    def stow_tls(self) -> TlsFiles:
        """The files of TLS for STOW-RS."""
        return _files(self.stow_tls_ca, self.stow_tls_cert, self.stow_tls_key, "stow_tls_")

    status_address: str = "127.0.0.1"
    status_port: int | None = Field(default=None, ge=0, le=65535)
    status_password_file: Path | None = None
    status_tls_ca: Path | None = None
    status_tls_cert: Path | None = None
    status_tls_key: Path | None = None

    @property
    def tls(self) -> TlsFiles:
        """The files of TLS."""
        return _files(self.tls_ca, self.tls_cert, self.tls_key, "tls_")

    @property
    def remote_clouds(self) -> list[str]:
        """The addresses of clouds on other machines."""
        clouds = (self.cloud, self.cloud_fallback)
        return [one for one in clouds if one is not None and not is_loopback(one)]

    @property
    def encryption(self) -> str:
        """How the way to the cloud is encrypted."""
        if self.tls_ca is None:
            return "none"
        return "TLS" if self.tls_cert is None else "mutual TLS"

    @field_validator("cloud", "cloud_fallback")
    @classmethod
    def _host_and_port(cls, cloud: str | None) -> str | None:
        if cloud is None or cloud == CLOUD_OFF:
            return None
        for one in replicas_of(cloud):
            if not is_address(one) or not one.rpartition(":")[2].strip("0"):
                raise ValueError("invalid address, expected HOST:PORT or off")
        grpc_target(cloud)
        return cloud

    @field_validator("dicom_peers")
    @classmethod
    def _are_peers(cls, peers: tuple[str, ...]) -> tuple[str, ...]:
        for peer in peers:
            Peer.of(peer)
        return peers

    @field_validator("receive_sop_classes")
    @classmethod
    def _are_storage_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        for one in classes:
            if UID(one).type != "SOP Class" or "Storage" not in UID(one).name:
                raise ValueError(f"{one!r} is no UID of a storage SOP class")
        return classes

    @model_validator(mode="after")
    def _receiving_is_safe(self) -> Self:
        for prefix, tls in (("dicom", self.dicom_tls), ("stow", self.stow_tls)):
            if (tls.cert is None) != (tls.key is None):
                raise ValueError(f"{prefix}_tls_cert and {prefix}_tls_key must be set together")
            if tls.ca is not None and tls.cert is None:
                raise ValueError(f"{prefix}_tls_ca requires {prefix}_tls_cert")
        if self.stow_port is None or is_loopback(f"{self.stow_address}:0"):
            return self
        if self.stow_token_file is None and self.stow_tls_ca is None:
            raise ValueError(
                f"stow_address = {self.stow_address} can be reached from other machines, and"
                " everyone there could send: set stow_token_file, or stow_tls_ca for certificates"
                " of the senders"
            )
        if self.stow_tls_cert is None and not self.insecure:
            raise ValueError(
                f"stow_address = {self.stow_address} can be reached from other machines, and"
                " studies would come unencrypted: set stow_tls_cert and stow_tls_key, or"
                " insecure = true where the network itself is protected"
            )
        return self

    @model_validator(mode="after")
    def _traces_can_go(self) -> Self:
        if problem := problem_of(self.traces):
            raise ValueError(problem)
        return self

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
        if self.cloud is not None and self.deadline_s <= self.reserve_s:
            raise ValueError(
                f"deadline_s = {self.deadline_s:g} leaves no time for the cloud, expected more"
                f" than reserve_s = {self.reserve_s:g}; increase deadline_s, decrease reserve_s, or"
                " set cloud to off"
            )
        if self.cloud_fallback is not None and self.cloud_fallback == self.cloud:
            raise ValueError("cloud_fallback must differ from cloud")
        names = [target.name for target in self.targets]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"targets: two have the name {twice}, expected one name for each")
        if self.fetch_models and (self.cloud is None or not self.model_keys):
            raise ValueError(
                "fetch_models requires cloud, and model_keys: only a signed model is taken from a"
                " cloud; set model_keys to the public keys of who may sign models"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be set together")
        if self.tls_cert is not None and self.tls_ca is None:
            raise ValueError("tls_cert requires tls_ca")
        if self.remote_clouds and self.tls_ca is None and not self.insecure:
            raise ValueError(
                f"{self.remote_clouds[0]} is another machine, and tls_ca is not set: pictures of"
                " patients would be sent unencrypted; set tls_ca, or insecure = true (--insecure)"
                " where the network itself is protected"
            )
        return self

    @model_validator(mode="after")
    def _status_page_is_safe(self) -> Self:
        if (self.status_tls_cert is None) != (self.status_tls_key is None):
            raise ValueError("status_tls_cert and status_tls_key must be set together")
        if self.status_tls_ca is not None and self.status_tls_cert is None:
            raise ValueError("status_tls_ca requires status_tls_cert")
        if self.status_port is None:
            return self
        if is_loopback(address_text(self.status_address, self.status_port)):
            return self
        reached = f"other machines reach status_address = {self.status_address}"
        if self.status_tls_cert is None:
            raise ValueError(
                f"{reached}, and status_tls_cert is not set: names and pictures of patients would"
                " be sent unencrypted; set status_tls_cert and status_tls_key, or keep"
                " status_address at 127.0.0.1"
            )
        if self.status_password_file is None and self.status_tls_ca is None:
            raise ValueError(
                f"{reached}, and everyone could look at patients: set status_password_file or"
                " status_tls_ca"
            )
        return self


def load_settings(config: Path | None = None, **overrides: object) -> EdgeSettings:
    """Load the settings of this process.

    ``config`` is a TOML file, None for environment and defaults alone. The overrides come from the
    command line; None stands for an option that is not set.

    Raises:
        BadSettings: the file cannot be read, a name is unknown, or a value is not allowed.
    """
    try:
        return load(EdgeSettings, config, overrides)
    except InvalidSettings as error:
        raise BadSettings(str(error)) from error
