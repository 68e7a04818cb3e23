"""The edge's configuration: one frozen object a process, from command line, environment and TOML.

The command line goes before the environment (``OVERREAD_EDGE_DEADLINE_S=5``), the environment
before the file, the file before the defaults.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from edge.errors import BadSettings
from protos.metadata import MAX_SITE_CHARACTERS

CLOUD_OFF = "off"
LONGEST_S = 31_536_000.0
"""A year: no time in seconds may be longer, for threads cannot wait for ever."""
LONGEST_DAYS = 36_500.0
_PRINTABLE = r"^([!-~]([ -~]*[!-~])?)?$"  # what may stand in gRPC's metadata


class EdgeSettings(BaseSettings):
    """Everything that can be set; units are in the names.

    Attributes:
        inbox: studies arrive here, a sub-folder each.
        outbox: reports are left here, a sub-folder each; outside the inbox.
        state_dir: the daemon's database, and studies at work and in quarantine; outside the inbox.
        quiet_s: a study without a ``.done`` file is complete when nothing changed for so long.
        cloud: ``HOST:PORT`` of the service, None for no second reading.
        cloud_hedge: ``HOST:PORT`` of another one, asked too where the first is slow or fails.
        deadline_s: the budget of a study from the moment it is complete in the inbox. It bounds
            the wait for the cloud, which ends ``reserve_s`` before it. The edge's own stages are
            not cut short: a report that comes after it is written all the same, counted as late.
        reserve_s: kept back from the escalation for merging, drawing and writing the report; less
            than ``deadline_s`` where there is a cloud.
        attempts: times that one study is offered to the cloud at most.
        watch_s: pause between two looks at whether the cloud is there, shorter while it is not;
            0 looks never: then a study has to find out.
        connect_s: so long after the agent began a study waits for the cloud to be found. Later it
            goes on without, and what the cloud should have read is owed until it is found. A link
            that is slow to connect, such as a satellite's, wants more. Of no effect where
            ``watch_s`` is 0.
        site: what this site is called by the cloud, which shares its time between sites; a
            certificate's name goes before it. Empty for none.
        max_rois: regions of one study that are escalated at most.
        describe: whether the cloud is also asked for size, kind and outline of what the edge
            reports by itself.
        audit_rate: share of the scans without anything to ask about of which the best places that
            the edge dismissed are read again all the same; 0 for none.
        owed_keep_days: days of the daemon's life for which a second reading that did not come by
            the deadline is asked for again; then the report's last version says so.
        owed_most_mb: room in megabytes that the database with all that is owed may take; beyond it
            the oldest debt is given up in the same way.
        owed_pause_s: pause after the first such asking in vain; it doubles up to five minutes where
            nobody answered, and up to an hour for a study that the cloud refused.
        screening_model: name in the manifest of ``models/weights``.
        threads: of the inference engine, 0 for all cores.
        cloud_model: version of the cloud's model that is insisted on; empty for any.
        tls_ca: certificate authority of the service; the link is encrypted when it is set.
        tls_certificate, tls_key: the edge's own, for mutual TLS.
        log_format: ``text`` for people; ``json`` for machines, which also tells every decision
            with all that it was made on (`edge.replay`).
        metrics_port: Prometheus metrics on this port of loopback, 0 for none.
    """

    model_config = SettingsConfigDict(
        env_prefix="OVERREAD_EDGE_", frozen=True, extra="forbid", allow_inf_nan=False
    )

    inbox: Path = Path("inbox")
    outbox: Path = Path("outbox")
    state_dir: Path = Path("state")
    quiet_s: float = Field(default=5.0, gt=0, le=LONGEST_S)
    poll_s: float = Field(default=0.5, gt=0, le=LONGEST_S)

    cloud: str | None = None
    cloud_hedge: str | None = None
    deadline_s: float = Field(default=10.0, gt=0, le=LONGEST_S)
    reserve_s: float = Field(default=2.0, ge=0, le=LONGEST_S)
    attempts: int = Field(default=3, ge=1, le=20)
    watch_s: float = Field(default=5.0, ge=0, le=LONGEST_S)
    connect_s: float = Field(default=0.5, ge=0, le=30)
    site: str = Field(default="", max_length=MAX_SITE_CHARACTERS, pattern=_PRINTABLE)
    max_rois: int = Field(default=64, ge=1)
    describe: bool = True
    audit_rate: float = Field(default=0.05, ge=0, le=1)
    owed_keep_days: float = Field(default=30.0, gt=0, le=LONGEST_DAYS)
    owed_most_mb: float = Field(default=2000.0, ge=1)
    owed_pause_s: float = Field(default=5.0, gt=0, le=LONGEST_S)
    roi_side: int = Field(default=48, ge=16, le=128)
    priority: Literal["routine", "stat"] = "routine"
    cloud_model: str = ""

    screening_model: str = "screening-int8"
    engine: str = "auto"
    threads: int = Field(default=0, ge=0)

    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    log_format: Literal["text", "json"] = "text"
    metrics_port: int = Field(default=0, ge=0, le=65535)

    @field_validator("cloud", "cloud_hedge")
    @classmethod
    def _host_and_port(cls, cloud: str | None) -> str | None:
        if cloud is None or cloud == CLOUD_OFF:
            return None
        host, _, port = cloud.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError("must be HOST:PORT or off")
        return cloud

    @model_validator(mode="after")
    def _inbox_is_apart(self) -> Self:
        inbox = os.path.realpath(self.inbox)
        for name, folder in (("outbox", self.outbox), ("state_dir", self.state_dir)):
            if Path(os.path.realpath(folder)).is_relative_to(inbox):
                raise ValueError(f"{name} must lie outside inbox, or what it holds is a study")
        if Path(inbox).is_relative_to(os.path.realpath(self.state_dir)):
            raise ValueError("inbox must lie outside state_dir, which is the daemon's own")
        return self

    @model_validator(mode="after")
    def _the_cloud_has_time(self) -> Self:
        if self.cloud is not None and self.deadline_s <= self.reserve_s:
            raise ValueError(
                f"deadline_s = {self.deadline_s:g} leaves no time to ask the cloud: it must be"
                f" longer than reserve_s = {self.reserve_s:g}; set a later deadline or a smaller"
                " reserve_s, or cloud to off"
            )
        return self

    @model_validator(mode="after")
    def _hedge_is_another(self) -> Self:
        if self.cloud_hedge is not None and self.cloud_hedge == self.cloud:
            raise ValueError("cloud_hedge must be another address than cloud")
        return self

    @model_validator(mode="after")
    def _mutual_tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_certificate is not None and self.tls_ca is None:
            raise ValueError("tls_certificate needs tls_ca")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the hook's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, file: the first that names a key wins."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(config: Path | None = None, **overrides: Any) -> EdgeSettings:
    """The settings of this process.

    Args:
        config: a TOML file, or None for environment and defaults alone.
        overrides: from the command line; those that are None are not set there.

    Raises:
        BadSettings: the file is missing or no TOML, a key is unknown, a value not allowed.
    """
    if config is not None and not config.is_file():
        raise BadSettings(f"{config}: there is no such configuration file")

    class FromFile(EdgeSettings):
        model_config = SettingsConfigDict(toml_file=config)

    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return FromFile(**given)
    except ValidationError as error:
        raise BadSettings(_in_words(error)) from error
    except ValueError as error:  # what tomllib raises is one
        raise BadSettings(f"{config}: {error}") from error


def _in_words(error: ValidationError) -> str:
    """What is wrong with one setting, with its value; of several together the message alone."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" if e["loc"] else e["msg"]
        for e in error.errors()
    )
