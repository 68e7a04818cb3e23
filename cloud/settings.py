"""The one settings object of a cloud process: built in `__main__`, passed on by argument."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cloud.errors import BadSettings


class CloudSettings(BaseSettings):
    """How a cloud process serves.

    What is given by argument wins over ``OVERREAD_CLOUD_*`` in the environment, that over the
    TOML file, that over what stands here.

    Attributes:
        address: ``HOST:PORT`` to listen on; port 0 takes a free one.
        model: name of the artifact that reads ROIs.
        engine: inference engine, or ``auto`` for the fastest that is correct.
        threads: threads of the engine; 0 leaves it to the engine.
        max_batch: ROIs read at once, at most.
        max_wait_s: how long an ROI may wait for company before its batch starts.
        max_waiting: ROIs that may wait in all; more are refused as `Overloaded`.
        scheduling: ``deadline``, or ``fcfs`` for first come, first served in full batches, blind
            to deadlines, priorities, sites and callers that have gone: to compare with.
        routine_wait_s: routine work that has waited so long, or half of its budget, is no longer
            passed by all that is stat: every fourth place is its own.
        site_share: of ``max_waiting``, what one site may hold while others wait, and of
            ``max_streams`` once half of them are open.
        site_weights: what a site gets beside another of weight 1, by its name.
        stages: parts of the model that work on different batches at once; 1 is the model whole.
        stage_engines: an engine for each of them; empty: ``engine`` for all.
        max_streams: studies open at once, the last tenth of them stat; more are refused as
            `Overloaded`. It bounds memory; what can be answered in time the deadlines decide.
        max_rois: ROIs of one study.
        max_roi_voxels: voxels of one ROI.
        max_message_bytes: size of one gRPC message.
        max_budget_s: longer budgets are cut to this.
        header_wait_s: a stream that has sent no header by then is closed, and so is one that has
            sent no ROI so long after its header.
        return_s: kept of each budget for the answer's way back, half of it at most.
        cached_answers: answers kept for an ROI that is sent again.
        cached_for_s: and for how long.
        grace_s: on SIGTERM, how long open studies have to finish.
        tls_cert: PEM certificate chain; with ``tls_key`` the service speaks TLS.
        tls_key: PEM private key.
        tls_client_ca: PEM of the authority that callers' certificates must come from; mutual TLS.
        metrics_address: host on which Prometheus metrics are served.
        metrics_port: their port; none are served where it is not set.
        log_json: log lines as JSON, for machines.
    """

    model_config = SettingsConfigDict(
        env_prefix="OVERREAD_CLOUD_",
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    address: str = "127.0.0.1:50051"
    model: str = "hybrid-int8"
    engine: str = "auto"
    threads: int = Field(0, ge=0)
    max_batch: int = Field(8, ge=1)
    max_wait_s: float = Field(0.005, ge=0, le=1)
    max_waiting: int = Field(512, ge=1)
    scheduling: Literal["deadline", "fcfs"] = "deadline"
    routine_wait_s: float = Field(1.0, gt=0)
    site_share: float = Field(0.5, gt=0, le=1)
    site_weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    stages: int = Field(1, ge=1, le=8)
    stage_engines: tuple[str, ...] = ()
    max_streams: int = Field(1024, ge=1)
    max_rois: int = Field(64, ge=1)
    max_roi_voxels: int = Field(64**3, ge=1)
    max_message_bytes: int = Field(4 * 2**20, ge=4096)
    max_budget_s: float = Field(600.0, gt=0)
    header_wait_s: float = Field(10.0, gt=0)
    return_s: float = Field(0.01, ge=0)
    cached_answers: int = Field(4096, ge=0)
    cached_for_s: float = Field(600.0, ge=0)
    grace_s: float = Field(20.0, ge=0)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    metrics_address: str = "127.0.0.1"
    metrics_port: int | None = Field(None, ge=0, le=65535)
    log_json: bool = False

    @model_validator(mode="after")
    def _each_stage_has_an_engine(self) -> Self:
        if self.stage_engines and len(self.stage_engines) != self.stages:
            raise ValueError(
                f"stage_engines names {len(self.stage_engines)} engines for stages = {self.stages}"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: give both or none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic calls by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Argument, environment, TOML file; the first that has a value wins."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(config: Path | None = None, **given: object) -> CloudSettings:
    """The settings from ``config`` (TOML), environment and ``given``, of which None is not given.

    Raises:
        BadSettings: the file cannot be read, or a setting is unknown or out of range.
    """
    if config is not None and not config.is_file():
        raise BadSettings(f"{config} is no file")

    class FromFile(CloudSettings):
        model_config = SettingsConfigDict(toml_file=config)

    known = {name: value for name, value in given.items() if value is not None}
    try:
        return FromFile(**known)  # type: ignore[arg-type] # pydantic checks each value's type
    except ValidationError as error:
        raise BadSettings("; ".join(_in_words(one) for one in error.errors())) from error
    except ValueError as error:  # what tomllib and the environment's parser raise are such
        raise BadSettings(f"{config or 'environment'}: {error}") from error


def _in_words(error: ErrorDetails) -> str:
    place = ".".join(str(part) for part in error["loc"])
    return f"{place}: {error['msg']}, not {error['input']!r}" if place else error["msg"]
