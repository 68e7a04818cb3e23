"""The open connections of gRPC: what each caller may have, and which are closed in a crowd.

gRPC accepts and encrypts connections itself, and has no hook for it. The kernel lists them in
``/proc/net``, and they are files of this process. Without ``/proc`` none are counted. Whose a
connection is shows in its first call: until then it is silent, and known by its address alone.
"""

import asyncio
import os
import resource
import socket
from collections import Counter
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote

import structlog

from protos.errors import Overloaded

PAUSE_S = 0.5
"""Seconds between two counts."""

CROWD = 0.25
"""Part of all connections from which on silent ones are closed, of addresses with too many."""

SPARE_FILES = 1024
"""Files that the process may have open besides connections of gRPC."""

MAPPED = "0000000000000000FFFF0000"
"""What the kernel writes before an address of IPv4 in its table of IPv6."""

_log = structlog.get_logger(__name__)


class Connections:
    """The connections to ``ports``: ``most`` in all, and ``most_of_caller`` of each caller.

    As many silent ones of each address are left in a crowd. One with a call is never closed.
    """

    def __init__(self, most: int, most_of_caller: int) -> None:
        self.ports = set[int]()
        self._most, self._most_of_caller = most, most_of_caller
        self._opened, self._callers = dict[str, int](), dict[str, str]()  # both by peer
        self._counted = asyncio.Event()

    @property
    def used(self) -> float:
        """The open ones as a part of those allowed: of all, or of one caller if that is more."""
        counts = Counter(list(self._callers.values())).values()  # metrics ask in another thread
        return max(len(self._opened) / self._most, max(counts, default=0) / self._most_of_caller)

    async def admit(self, peer: str, caller: str) -> None:
        """Count the connection of a call as that of ``caller``; gRPC writes the ``peer``.

        Raises:
            Overloaded: the caller has too many others.
        """
        if not peer.startswith("ip") or self._callers.get(at := kernel_form(peer)) == caller:
            return
        if self._count(caller) >= self._most_of_caller:
            await self._counted.wait()  # some may have ended since the last count
        if (count := self._count(caller)) >= self._most_of_caller:
            text = f"{caller} has {count} open connections, the limit is {self._most_of_caller}"
            raise Overloaded(text, limit=self._most_of_caller, of_site=True)
        self._callers[at] = caller

    def _count(self, caller: str) -> int:
        return sum(one == caller for one in self._callers.values())

    async def watch(self) -> None:
        """Count again and again; in a crowd close the newest silent ones beyond the limit."""
        while True:
            known = set(self._callers)  # what comes while the kernel is asked is in no list yet
            now = await asyncio.to_thread(self._open)
            for gone in known - now.keys():
                del self._callers[gone]
            kept = {peer: now.pop(peer) for peer in self._opened if peer in now}
            self._opened = kept | dict(sorted(now.items(), key=lambda one: one[1]))
            self._counted.set()
            self._counted = asyncio.Event()
            silent, excess = Counter[str](), dict[int, str]()
            for peer, inode in self._opened.items():
                if peer not in self._callers:
                    silent[address := peer.partition(":")[0]] += 1
                    if silent[address] > self._most_of_caller:
                        excess[inode] = peer
            if excess and len(self._opened) > CROWD * self._most:
                addresses = await asyncio.to_thread(self._close, excess)
                _log.warning("too many connections", addresses=addresses, closed=len(excess))
            await asyncio.sleep(PAUSE_S)

    def _open(self) -> dict[str, int]:
        """Return the inodes of the open sockets by peer, as the kernel writes it."""
        found, ports = dict[str, int](), {f":{port:04X}" for port in self.ports}
        for table in ("tcp", "tcp6"):
            with suppress(OSError):
                for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                    _, local, peer, state, *_, inode = line.split()[:10]
                    if state == "01" and local[-5:] in ports and inode != "0":  # established
                        found[peer.removeprefix(MAPPED)] = int(inode)
        return found

    def _close(self, inodes: dict[int, str]) -> list[str]:
        """Shut down these sockets of this process, so that gRPC closes them; return addresses."""
        addresses = set()
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # it is closed by now
                if os.stat(f"/proc/self/fd/{name}").st_ino not in inodes:
                    continue
                with socket.socket(fileno=os.dup(int(name))) as one:
                    peer = inodes.get(os.fstat(one.fileno()).st_ino)  # it may be another's now
                    if peer is not None and peer not in self._callers:  # nor has it a call now
                        addresses.add(one.getpeername()[0])
                        one.shutdown(socket.SHUT_RDWR)
        return sorted(addresses)


def kernel_form(peer: str) -> str:
    """Return ``ipv4:HOST:PORT`` or ``ipv6:[HOST]:PORT`` of gRPC as the kernel writes it."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    packed = ip_address(host.strip("[]").partition("%")[0]).packed
    words = (packed[i : i + 4][::-1].hex() for i in range(0, len(packed), 4))
    return f"{''.join(words)}:{int(port):04x}".upper().removeprefix(MAPPED)


def allowed(wanted: int) -> int:
    """Return how many connections can be open, after raising the limit of open files for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + SPARE_FILES if hard == resource.RLIM_INFINITY else hard
    files = max(soft, min(files, wanted + SPARE_FILES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return min(wanted, max(files - SPARE_FILES, files // 2))
