"""The settings of the targets that get result objects: one table ``[[targets]]`` each."""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from process.tls import TlsFiles, is_loopback

ObjectKind = Literal["sr", "seg", "capture", "pdf"]
"""Kinds of objects: structured report, segmentation, secondary capture, and encapsulated PDF."""

_AE_TITLE = r"^[!-\[\]-~]([ -\[\]-~]*[!-\[\]-~])?$"  # PS3.5, VR AE: no backslash, no outer spaces
_AE_WORDS = "1 to 16 ASCII characters without a backslash, and without spaces at the ends"


class _TargetSettings(BaseModel):
    """What every target has.

    Attributes:
        name: in commands, metrics and logs; unique.
        objects: kinds of objects that it gets; empty: all.
        connect_s: longest time to connect.
        answer_s: longest wait for the answer to one object.
        tls_ca: PEM authority that signed the target's certificate.
        insecure: whether objects may be sent to another machine without TLS.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(
        max_length=32, pattern=r"^[A-Za-z0-9_-]+$", description="1 to 32 letters, digits, _ and -"
    )
    objects: tuple[ObjectKind, ...] = ()
    connect_s: float = Field(default=10.0, gt=0, le=600)
    answer_s: float = Field(default=60.0, gt=0, le=3600)
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False

    @property
    def tls(self) -> TlsFiles:
        """The files of TLS."""
        return TlsFiles(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key).named("tls_")

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be set together")
        return self

    def _require_encryption(self, address: str, *, encrypted: bool, remedy: str) -> None:
        if not encrypted and not self.insecure and not is_loopback(address):
            raise ValueError(
                f"{address} is another machine, and {remedy}: results of"
                " patients would be sent unencrypted; or set insecure = true for this target where"
                " the network itself is protected"
            )


class DicomTarget(_TargetSettings):
    """A target of DICOM's own protocol, C-STORE; with ``tls_ca`` over TLS.

    Attributes:
        called_ae: application entity title of the target.
        calling_ae: application entity title of this edge, which the target may have to know.
    """

    kind: Literal["dicom"]
    host: str = Field(min_length=1, max_length=253, pattern=r"^[!-~]+$", description="a host name")
    port: int = Field(ge=1, le=65535)
    called_ae: str = Field(max_length=16, pattern=_AE_TITLE, description=_AE_WORDS)
    calling_ae: str = Field(
        default="OVERREAD", max_length=16, pattern=_AE_TITLE, description=_AE_WORDS
    )

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return f"{self.host}:{self.port}"

    @property
    def encryption(self) -> str:
        """How the way to the target is encrypted."""
        if self.tls_ca is None:
            return "none"
        return "TLS" if self.tls_cert is None else "mutual TLS"

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.tls_cert is not None and self.tls_ca is None:
            raise ValueError("tls_cert requires tls_ca")
        encrypted = self.tls_ca is not None
        self._require_encryption(self.address, encrypted=encrypted, remedy="tls_ca is not set")
        return self


class DicomWebTarget(_TargetSettings):
    """A target of DICOMweb, STOW-RS.

    ``tls_ca`` is the authority for an ``https`` address; not set: those that the machine trusts.

    Attributes:
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
        return "TLS" if self.tls_cert is None else "mutual TLS"

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        parts = urlsplit(self.url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:  # a port that is no number, or too large
            host = port = None
        if not host or parts.query or parts.fragment or parts.username is not None:
            raise ValueError(
                f"url = {self.url!r}: expected an address without user, query"
                " and fragment, such as https://pacs.example.org/dicom-web"
            )
        encrypted = parts.scheme == "https"
        if not encrypted and (self.tls_ca or self.tls_cert):
            raise ValueError("tls_ca and tls_cert need an https:// address")
        remedy = "url is not https://"
        self._require_encryption(f"{host}:{port or 80}", encrypted=encrypted, remedy=remedy)
        return self


TargetSettings = Annotated[DicomTarget | DicomWebTarget, Field(discriminator="kind")]
