"""The settings of an edge process: one frozen object, built in `__main__` and passed by argument.

The command line overrides the environment (``OVERREAD_EDGE_DEADLINE_S=5``), the environment
overrides the TOML file, the file overrides the defaults.
"""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from edge.errors import BadSettings
from process.endpoints import address_text
from process.settings import InvalidSettings, ProcessSettings, load
from process.tls import TlsFiles, is_address, is_loopback
from protos.metadata import MAX_SITE_CHARACTERS

CLOUD_OFF = "off"
LONGEST_S = 31_536_000.0
"""Largest time in seconds: a year. Threads cannot wait for arbitrarily long."""
_PRINTABLE = r"^([!-~]([ -~]*[!-~])?)?$"  # what may stand in gRPC's metadata


class EdgeSettings(ProcessSettings):
    """All settings of the edge; units are in the names.

    ``docs/operations.md`` has a table of them; here is what names, types and defaults do not say.

    Attributes:
        outbox: folder for the reports, a sub-folder each; must lie outside ``inbox``.
        state_dir: folder for the database and for claimed, finished and quarantined studies; must
            lie outside ``inbox``.
        quiet_s: a study without a ``.done`` file is complete after this time without a change.
        cloud: ``HOST:PORT`` of the cloud; None for no second reading.
        cloud_hedge: ``HOST:PORT`` of another cloud, used in addition if the first is slow or fails,
            and in its place while the first is down.
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
        engine: inference engine, or ``auto`` for the fastest that is correct.
        threads: threads of the inference engine; 0 for all cores.
        series: UID, number or description of the series to read; ``*`` and ``?`` stand for any
            letters and any letter. Empty: the pixels decide. A study without such a series is
            rejected.
        read_memory_mb: largest memory, in megabytes, of the process that reads a study; a study
            that needs more is rejected.
        read_timeout_s: longest time to read and preprocess a study; one that needs more is
            rejected.
        tls_ca: PEM authority that signed the cloud's certificate; setting it enables TLS.
        insecure: whether ROIs may be sent to another machine without TLS.
        metrics_port: port of the metrics; None: off, 0: a free port.
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
    cloud_hedge: str | None = None
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
    engine: str = "auto"
    threads: int = Field(default=0, ge=0)
    series: str = Field(default="", max_length=128, coerce_numbers_to_str=True)
    read_memory_mb: int = Field(default=3500, ge=500)
    read_timeout_s: float = Field(default=60.0, ge=1, le=LONGEST_S)

    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False

    log_format: Literal["text", "json"] = "text"
    metrics_address: str = "127.0.0.1"
    metrics_port: int | None = Field(default=None, ge=0, le=65535)

    status_address: str = "127.0.0.1"
    status_port: int | None = Field(default=None, ge=0, le=65535)
    status_password_file: Path | None = None
    status_tls_ca: Path | None = None
    status_tls_cert: Path | None = None
    status_tls_key: Path | None = None

    @property
    def tls(self) -> TlsFiles:
        """The files of TLS."""
        return TlsFiles(self.tls_ca, self.tls_cert, self.tls_key)

    @property
    def remote_clouds(self) -> list[str]:
        """The addresses of clouds on other machines."""
        clouds = (self.cloud, self.cloud_hedge)
        return [one for one in clouds if one is not None and not is_loopback(one)]

    @property
    def encryption(self) -> str:
        """How the way to the cloud is encrypted."""
        if self.tls_ca is None:
            return "none"
        return "TLS" if self.tls_cert is None else "mutual TLS"

    @field_validator("cloud", "cloud_hedge")
    @classmethod
    def _host_and_port(cls, cloud: str | None) -> str | None:
        if cloud is None or cloud == CLOUD_OFF:
            return None
        if not is_address(cloud) or not cloud.rpartition(":")[2].strip("0"):
            raise ValueError("invalid address, expected HOST:PORT or off")
        return cloud

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
        if self.cloud_hedge is not None and self.cloud_hedge == self.cloud:
            raise ValueError("cloud_hedge must differ from cloud")
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
