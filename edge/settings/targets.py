"""The settings of the targets that get result objects: one table ``[[targets]]`` each."""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from edge.settings.receive import AeTitle
from process.settings import Table
from process.tls import TlsFiles, is_address, is_host, is_loopback

ObjectKind = Literal["sr", "seg", "capture", "pdf"]
"""Kinds of objects: structured report, segmentation, secondary capture, and encapsulated PDF."""

CONNECT_S = 10.0
"""Longest time to connect to a target."""


def _is_port(address: str) -> str:
    if not is_address(address) or not address.rpartition(":")[2].strip("0"):
        raise ValueError("invalid address, expected HOST:PORT")
    return address


class _TargetSettings(Table):
    """What every target has.

    Attributes:
        name: in commands, metrics and logs; unique.
        objects: kinds of objects that it gets; empty: all.
        timeout_s: longest wait for the answer to one object; a connection has 10 s at most.
        tls: files of TLS; ``ca`` must have signed the target's certificate.
        insecure: whether objects may be sent to another machine without TLS.
    """

    name: str = Field(
        max_length=32, pattern=r"^[A-Za-z0-9_-]+$", description="1 to 32 letters, digits, _ and -"
    )
    objects: tuple[ObjectKind, ...] = ()
    timeout_s: float = Field(default=60.0, gt=0, le=3600)
    tls: TlsFiles = Field(default_factory=TlsFiles)
    insecure: bool = False

    @property
    def connect_s(self) -> float:
        """Longest time to connect."""
        return min(CONNECT_S, self.timeout_s)

    def _require_encryption(self, address: str, *, encrypted: bool, remedy: str) -> None:
        if not encrypted and not self.insecure and not is_loopback(address):
            raise ValueError(
                f"{address} is another machine, and {remedy}: results of"
                " patients would be sent unencrypted; or set insecure = true for this target where"
                " the network itself is protected"
            )


class DicomTarget(_TargetSettings):
    """A target of DICOM's own protocol, C-STORE; with ``tls.ca`` over TLS.

    Attributes:
        kind: ``dicom``.
        address: ``HOST:PORT`` of the target.
        called_ae: AE title of the target.
        calling_ae: AE title of this edge, which the target may have to know.
    """

    kind: Literal["dicom"]
    address: Annotated[str, AfterValidator(_is_port), Field(description="HOST:PORT")]
    called_ae: AeTitle
    calling_ae: AeTitle = "OVERREAD"

    @property
    def encryption(self) -> str:
        """How the way to the target is encrypted."""
        return self.tls.encryption

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.tls.cert is not None and self.tls.ca is None:
            raise ValueError("tls.cert requires tls.ca")
        encrypted = self.tls.ca is not None
        self._require_encryption(self.address, encrypted=encrypted, remedy="tls.ca is not set")
        return self


class DicomWebTarget(_TargetSettings):
    """A target of DICOMweb, STOW-RS.

    ``tls.ca`` is the authority for an ``https`` address; not set: those that the machine trusts.

    Attributes:
        kind: ``dicomweb``.
        url: of the service, below which ``/studies`` lies.
        token_file: file with the bearer token; it is read with each request.
    """

    kind: Literal["dicomweb"]
    url: str = Field(
        pattern=r"^https?://[!-~]+$", description="an address with http:// or https://"
    )
    token_file: Path | None = None

    @property
    def address(self) -> str:
        """The address of the service."""
        return self.url

    @property
    def encryption(self) -> str:
        """How the way to the target is encrypted."""
        if not self.url.startswith("https:"):
            return "none"
        return "TLS" if self.tls.cert is None else "mutual TLS"

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        parts = urlsplit(self.url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:  # a port that is no number, or too large
            host = port = None
        is_plain = not (parts.query or parts.fragment) and parts.username is None
        if not host or not is_host(host) or not is_plain:
            raise ValueError(
                f"url = {self.url!r}: expected an address with a valid host, and"
                " without user, query and fragment, such as https://pacs.example.org/dicom-web"
            )
        encrypted = parts.scheme == "https"
        if not encrypted and (self.tls.ca or self.tls.cert):
            raise ValueError("tls.ca and tls.cert need an https:// address")
        remedy = "url is not https://"
        self._require_encryption(f"{host}:{port or 80}", encrypted=encrypted, remedy=remedy)
        return self


TargetSettings = Annotated[DicomTarget | DicomWebTarget, Field(discriminator="kind")]
