"""The open connections of gRPC: counted by address, and closed where one address has too many.

gRPC accepts and encrypts connections itself, and has no hook for it. The kernel lists them in
``/proc/net``, and they are files of this process. Without ``/proc`` none are counted.
"""

import asyncio
import os
import resource
import socket
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import structlog

PAUSE_S = 0.5
"""Seconds between two counts."""

SPARE_FILES = 1024
"""Files that the process may have open besides connections of gRPC."""

_log = structlog.get_logger(__name__)


class Connections:
    """The connections to a port, of which each address may have ``most_of_address``.

    ``most`` is the number of all that gRPC accepts.
    """

    def __init__(self, port: int, most: int, most_of_address: int) -> None:
        self._port, self._most, self._most_of_address = port, most, most_of_address
        self._kept: dict[str, list[int]] = {}

    @property
    def used(self) -> float:
        """The open ones as a part of those allowed: of all, or of one address if that is more."""
        counts = [len(one) for one in self._kept.values()]
        return max(sum(counts) / self._most, max(counts, default=0) / self._most_of_address)

    async def watch(self) -> None:
        """Count again and again; close the newest of an address that has too many."""
        while True:
            kept, excess = dict[str, list[int]](), set[int]()
            for address, now in (await asyncio.to_thread(self._open)).items():
                before = [one for one in self._kept.get(address, ()) if one in now]
                ordered = before + sorted(now.difference(before))
                kept[address] = ordered[: self._most_of_address]
                excess.update(ordered[self._most_of_address :])
            self._kept = kept
            if excess:
                addresses = await asyncio.to_thread(_close, excess)
                _log.warning("too many connections", addresses=addresses, closed=len(excess))
            await asyncio.sleep(PAUSE_S)

    def _open(self) -> dict[str, set[int]]:
        """Return the inodes of the open sockets by address, as the kernel writes it."""
        found, port = defaultdict[str, set[int]](set), f":{self._port:04X}"
        for table in ("tcp", "tcp6"):
            with suppress(OSError):
                for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                    _, local, peer, state, *_, inode = line.split()[:10]
                    if state == "01" and local.endswith(port) and inode != "0":  # established
                        found[peer.partition(":")[0]].add(int(inode))
        return found


def _close(inodes: set[int]) -> list[str]:
    """Shut down these sockets of this process, so that gRPC closes them; return their addresses."""
    addresses = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it is closed by now
            if os.stat(f"/proc/self/fd/{name}").st_ino in inodes:
                with socket.socket(fileno=os.dup(int(name))) as one:
                    if os.fstat(one.fileno()).st_ino in inodes:  # the number may be another's now
                        addresses.add(one.getpeername()[0])
                        one.shutdown(socket.SHUT_RDWR)
    return sorted(addresses)


def allowed(wanted: int) -> int:
    """Return how many connections can be open, after raising the limit of open files for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + SPARE_FILES if hard == resource.RLIM_INFINITY else hard
    files = max(soft, min(files, wanted + SPARE_FILES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return min(wanted, max(files - SPARE_FILES, files // 2))
