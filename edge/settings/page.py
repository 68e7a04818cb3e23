"""The settings of the status page: the table ``[page]``."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from process.settings import ListenAddress, Table
from process.tls import ServerTlsFiles, is_loopback


class PageSettings(Table):
    """Where the status page is served, and who may see it.

    Attributes:
        address: ``HOST:PORT`` of the status page; port 0 is a free one, empty: off. Another one
            than loopback requires TLS, and a password or client certificates.
        password_file: file with the password, or with its hash.
        tls: files of TLS; ``cert`` and ``key`` enable it. Certificates that ``ca`` has signed open
            the page without password.
    """

    address: ListenAddress = ""
    password_file: Path | None = None
    tls: ServerTlsFiles = Field(default_factory=ServerTlsFiles)

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
        if self.password_file is None and self.tls.ca is None:
            raise ValueError(
                f"{reached}, and everyone could look at patients: set password_file or tls.ca"
            )
        return self
