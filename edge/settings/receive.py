"""The settings of studies that come over the network: the table ``[receive]``."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from edge.errors import BadSettings
from process.settings import MAX_S, ListenAddress, Table
from process.tls import ServerTlsFiles, is_loopback

_AE_TITLE = r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$"  # PS3.5, VR AE
_AE_EXPECTED = "1 to 16 ASCII characters without a backslash, and without spaces at the ends"
AeTitle = Annotated[str, Field(pattern=_AE_TITLE, description=_AE_EXPECTED)]
MAX_TOKEN_BYTES = 4096
"""Longer ones do not fit into a header of HTTP at every service."""


def read_token(setting: str, path: Path, least: int = 1) -> str:
    """Return the token in a file: one line of at least ``least`` printable ASCII characters.

    Raises:
        BadSettings: the file cannot be read, or holds something else; the message names the setting
            and the file, and has nothing of the content.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise BadSettings(f"{setting} = {path}: {error.strerror}") from error
    token = content.strip()
    printable = all(0x20 < byte < 0x7F for byte in token)
    if not (printable and len(token) >= least and len(content) <= MAX_TOKEN_BYTES):
        wanted = f"one line of {least} to {MAX_TOKEN_BYTES} ASCII characters without spaces"
        raise BadSettings(f"{setting} = {path}: expected {wanted}")
    return token.decode("ascii")


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


class DicomReceiveSettings(Table):
    """How studies are received by C-STORE.

    Attributes:
        address: ``HOST:PORT`` to listen on; port 0 is a free one, empty: off. Other machines reach
            only another one than loopback.
        ae_title: AE title of the agent; an association that calls another one is rejected.
        peers: who may send, ``AE`` or ``AE@ADDRESS``; an address may be a network. Empty: every
            user of this machine.
        tls: files of TLS; ``cert`` and ``key`` enable it, ``ca`` must have signed the certificates
            of senders.
    """

    address: ListenAddress = ""
    ae_title: AeTitle = "OVERREAD"
    peers: tuple[str, ...] = Field(
        default=(), description='a list such as ["SCANNER@10.1.2.3", "PACS@10.2.0.0/16", "OTHER"]'
    )
    tls: ServerTlsFiles = Field(default_factory=ServerTlsFiles)

    @field_validator("peers")
    @classmethod
    def _are_peers(cls, peers: tuple[str, ...]) -> tuple[str, ...]:
        for peer in peers:
            Peer.of(peer)
        return peers


class StowReceiveSettings(Table):
    """How studies are received by STOW-RS.

    Attributes:
        address: ``HOST:PORT`` to listen on; port 0 is a free one, empty: off. Another one than
            loopback requires TLS, and a token or certificates of the senders.
        token_file: file with the token that senders must name.
        insecure: whether other machines may send without TLS.
        tls: files of TLS; ``cert`` and ``key`` enable it, ``ca`` must have signed the certificates
            of senders.
    """

    address: ListenAddress = ""
    token_file: Path | None = None
    insecure: bool = False
    tls: ServerTlsFiles = Field(default_factory=ServerTlsFiles)

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if not self.address or is_loopback(self.address):
            return self
        reached = f"address = {self.address} can be reached from other machines, and"
        if self.token_file is None and self.tls.ca is None:
            raise ValueError(
                f"{reached} everyone there could send: set token_file, or tls.ca for certificates"
                " of the senders"
            )
        if self.tls.cert is None and not self.insecure:
            raise ValueError(
                f"{reached} studies would come unencrypted: set tls.cert and tls.key, or"
                " insecure = true where the network itself is protected"
            )
        return self

    def token(self) -> str:
        """Return the token that senders must name; empty for none.

        Raises:
            BadSettings: see `read_token`.
        """
        if self.token_file is None:
            return ""
        return read_token("receive.stow.token_file", self.token_file, least=16)


class ReceiveSettings(Table):
    """What is received over the network.

    Attributes:
        dicom: studies that come by C-STORE.
        stow: studies that come by STOW-RS.
        max_instance_mb: largest received instance, in megabytes.
        min_free_mb: space in megabytes that stays free on the inbox's disk.
        timeout_s: longest silence within an association or a request, and longest time for one PDU.
            A connection has half of it until it requests an association.
        complete_at_end: whether a study is complete when the association or the request that sent
            all of it ends. Only for senders that send a study at once.
    """

    dicom: DicomReceiveSettings = Field(default_factory=DicomReceiveSettings)
    stow: StowReceiveSettings = Field(default_factory=StowReceiveSettings)
    max_instance_mb: int = Field(default=1024, ge=1, le=4000)
    min_free_mb: int = Field(default=1000, ge=1)
    timeout_s: float = Field(default=60.0, ge=1, le=MAX_S)
    complete_at_end: bool = False

    @property
    def is_on(self) -> bool:
        """Whether studies are received over the network at all."""
        return bool(self.dicom.address or self.stow.address)
