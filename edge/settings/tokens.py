"""The token in a file of the settings."""

from pathlib import Path

from edge.errors import BadSettings

MAX_BYTES = 4096
"""Longer ones do not fit into a header of HTTP at every service."""


def read_token(setting: str, path: Path, least: int = 1) -> str:
    """Return the token in a file: one line of at least ``least`` printable ASCII characters.

    Raises:
        BadSettings: the file cannot be read, or holds something else; the message names the setting
            and the file, and has nothing of the content.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadSettings(f"{setting} = {path}: {error.strerror}") from error
    token = content.strip()
    printable = all(0x20 < byte < 0x7F for byte in token)
    if not (printable and len(token) >= least and len(content) <= MAX_BYTES):
        raise BadSettings(
            f"{setting} = {path}: expected one line of {least} to {MAX_BYTES} ASCII characters"
            " without spaces"
        )
    return token.decode("ascii")
