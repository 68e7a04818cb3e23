"""The settings of the second reading: the table ``[cloud]``."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from process.settings import LONGEST_S, Table
from process.tls import TlsFiles, grpc_target, is_address, is_loopback, replicas_of

CLOUD_OFF = "off"


class CloudClientSettings(Table):
    """Which cloud reads again, and what is sent to it.

    Attributes:
        address: ``HOST:PORT`` of the cloud, several with commas between them, or ``off``; None for
            no second reading.
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
    fallback: str | None = None
    tls: TlsFiles = Field(default_factory=TlsFiles)
    insecure: bool = False
    model: str = ""
    health_check_s: float = Field(default=5.0, ge=0, le=LONGEST_S)
    max_rois: int = Field(default=64, ge=1)
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
        grpc_target(cloud)
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
