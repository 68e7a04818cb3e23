"""The settings of a cloud process: one object, built in `__main__` and passed by argument.

And the errors of the process, which concern its operator.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from process.settings import InvalidSettings, ProcessSettings, load
from process.tls import ServerTlsFiles, is_address, is_loopback
from process.tracing import Traces


class CloudError(Exception):
    """The service cannot start or continue; callers receive errors of `protos.errors` instead."""


class BadSettings(CloudError):
    """A setting is unknown, missing or out of range; the message names it."""


class AddressUnusable(CloudError):
    """The address is invalid, or cannot be bound; the message names it."""


class BatcherFailed(CloudError):
    """No more batches are read: no instance of the model can, or a fault of the program, logged."""


class CloudSettings(ProcessSettings):
    """How a cloud process serves.

    An argument overrides ``OVERREAD_CLOUD_*`` in the environment, the environment overrides the
    TOML file, the file overrides the defaults. ``docs/reference.md`` lists all settings;
    here is what names, types and defaults do not say.

    Attributes:
        address: ``HOST:PORT`` to listen on; port 0 takes a free one.
        inference_address: ``HOST:PORT`` of the Open Inference Protocol over gRPC; empty: off.
        http_address: ``HOST:PORT`` of the Open Inference Protocol over HTTP; empty: off.
        model: artifact that reads ROIs.
        model_folder: folder with the models and their manifest; None: the package's.
        engine: ``openvino``, ``openvino:DEVICE``, ``onnxruntime`` or ``onnxruntime:PROVIDER``;
            ``auto`` for the fastest that is correct.
        threads: threads of each instance; 0 divides all cores that the process may use.
        max_batch: largest number of ROIs in a batch.
        site_weights: the weight of each named site in shares and turns; others have weight 1.
        instances: copies of the model on each device; each reads batches of its own.
        devices: ``cpu``, ``cuda:0``, ``GPU.0`` and the like, see `models.runtime.hardware`; empty:
            where ``engine`` runs.
        stages: parts of each instance that work on different batches at once; 1 is the whole model.
        stage_engines: an engine for each part; empty: ``engine`` for all.
        ray: Ray cluster that runs the instances: ``auto`` for the one of this machine, ``local``
            for a new one in it, or ``HOST:PORT``; empty: they run in this process.
        max_streams: largest number of open studies and inference requests together, the last tenth
            for stat only; more are rejected as `Overloaded`. It bounds memory, while deadlines
            bound the load.
        trusted_proxies: names in the certificates of proxies, which name the site of each of their
            callers in ``overread-site``. ``*`` is every caller without a certificate: only where a
            proxy sets the name. Otherwise the site of such a caller is the address of its machine.
        stat_sites: sites that may send stat; empty: those with a certificate, and this machine.
            Stat of others is read as routine.
        max_connection_age_s: after this time callers must connect again, so that they find
            new replicas; open studies go on.
        grace_s: time that open studies and inference requests have to finish after SIGTERM.
        model_keys: files of public keys, one of which must have signed the manifest of the models;
            empty: no signature is required.
        offered_model: artifact that sites may fetch for their edge; empty: none is offered.
        offered_folder: folder with its manifest, ``manifest.sig`` and files; None: the package's.
        tls: files of TLS; with ``ca`` callers need certificates that it has signed.
        insecure: whether another machine may send ROIs without TLS.
        metrics_address: ``HOST:PORT`` of the metrics; empty: off.
        traces: where traces go: the OTLP address of a collector, with ``http://`` or ``https://``,
            or a file; empty: nowhere.
        log_format: form of the log on standard error.
    """

    model_config = SettingsConfigDict(env_prefix="OVERREAD_CLOUD_")

    address: str = "127.0.0.1:50051"
    inference_address: str = ""
    http_address: str = ""
    model: str = "hybrid-int8"
    model_folder: Path | None = None
    model_keys: tuple[Path, ...] = ()
    engine: str = "auto"
    threads: int = Field(0, ge=0, le=1024)
    max_batch: int = Field(8, ge=1, le=256)
    site_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="a table with a number greater than 0 for each site"
    )
    instances: int = Field(1, ge=1, le=64)
    devices: tuple[str, ...] = Field((), description="a list with the name of each device")
    stages: int = Field(1, ge=1, le=8)
    stage_engines: tuple[str, ...] = Field((), description="a list with the name of each engine")
    ray: str = ""
    max_streams: int = Field(1024, ge=1)
    trusted_proxies: tuple[str, ...] = Field((), description="a list with the name of each proxy")
    stat_sites: tuple[str, ...] = Field((), description="a list with the name of each site")
    max_connection_age_s: float = Field(600.0, ge=1, le=2e6)
    grace_s: float = Field(20.0, ge=0)
    offered_model: str = ""
    offered_folder: Path | None = None
    tls: ServerTlsFiles = Field(default_factory=ServerTlsFiles)
    insecure: bool = False
    metrics_address: str = ""
    traces: Traces = ""
    log_format: Literal["text", "json"] = "text"

    @property
    def reachable(self) -> dict[str, str]:
        """The addresses that other machines reach, by their settings."""
        names = ("address", "inference_address", "http_address")
        found = {name: getattr(self, name) for name in names}
        return {name: at for name, at in found.items() if at and not is_loopback(at)}

    @field_validator("address", "inference_address", "http_address", "metrics_address")
    @classmethod
    def _host_and_port(cls, address: str, info: ValidationInfo) -> str:
        others = address.startswith("unix:") if info.field_name == "address" else not address
        if not (is_address(address) or others):
            raise ValueError("invalid address, expected HOST:PORT")
        return address

    @model_validator(mode="after")
    def _instances_can_be_opened(self) -> Self:
        if self.devices and (self.stage_engines or ":" in self.engine):
            raise ValueError("devices is set, and engine or stage_engines names devices too")
        if self.ray and self.stages > 1:
            raise ValueError(f"ray runs whole models, and stages = {self.stages}: set stages = 1")
        if self.ray and len(self.devices) > 1:
            raise ValueError(
                "ray places the instances itself: devices may name one kind, such as cuda"
            )
        return self

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.stage_engines and len(self.stage_engines) != self.stages:
            raise ValueError(
                f"stage_engines names {len(self.stage_engines)} engines for stages = {self.stages}"
            )
        if self.tls.cert is None and not self.insecure:
            for setting, address in self.reachable.items():
                raise ValueError(
                    f"{setting} = {address} can be reached from other machines, and tls.cert is"
                    " not set: pictures of patients would be sent unencrypted; set tls.cert and"
                    " tls.key, or insecure = true (--insecure) where the network itself is"
                    " protected"
                )
        return self


def load_settings(config: Path | None = None, **arguments: object) -> CloudSettings:
    """Return the settings from ``config`` (TOML), environment and ``arguments`` that are not None.

    Raises:
        BadSettings: the file cannot be read, a name is unknown, or a value is not allowed.
    """
    try:
        return load(CloudSettings, config, arguments)
    except InvalidSettings as error:
        raise BadSettings(str(error)) from error
