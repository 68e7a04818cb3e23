"""One channel to some replicas of a cloud: each has a connection and a certificate of its own.

gRPC would take a list of addresses too, but compares each certificate with the whole list. Behind a
name it would connect to all replicas, and so would every edge.
"""

import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial, partialmethod
from hashlib import sha256
from typing import Any, NamedTuple, Self

import grpc
from grpc import ChannelConnectivity as State

AVOID_S = 60.0
"""A replica that could not be connected is tried after the others for this time."""

LOOK_UP_S, LOST_S = 300.0, 5.0
"""Time between two look-ups of names; the shorter one after a connection was lost."""


class Replica(NamedTuple):
    """The address of a replica, and the setting's address whose name it must have."""

    address: str
    named: str


class Replicas:
    """What a stub needs of a channel; each call goes to the next replica that is connected.

    ``opened`` opens a channel to one replica. When ``version`` returns another object, all are
    opened again; open calls end on the channels on which they began. A call waits ``connect_s`` at
    most until a replica is connected. Connected are ``most``, which ``seed`` spreads evenly; others
    take the place of those that fail.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        opened: Callable[[Replica], grpc.Channel],
        version: Callable[[], object],
        connect_s: float,
        *,
        most: int,
        seed: str,
    ) -> None:
        self._addresses, self._opened, self._version = addresses, opened, version
        self._given = [Replica(name, name) for name in addresses]
        self._connect_s, self._changed, self._turn = connect_s, threading.Condition(), 0
        self._most, self._seed = most, seed
        self._replicas: Sequence[Replica] = ()
        self._looked_up_s, self._lost, self._failed_s = -math.inf, False, dict[Replica, float]()
        self._drop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            for channel in self._channels.values():
                channel.close()

    def next_channel(self, wait_s: float) -> grpc.Channel:
        """Return the channel of the next replica; wait where none is connected yet."""
        end_s = time.monotonic() + min(wait_s, self._connect_s)
        with self._changed:
            if time.monotonic() - self._looked_up_s > (LOST_S if self._lost else LOOK_UP_S):
                self._looked_up_s, self._lost = time.monotonic(), False
                threading.Thread(target=self._look_up, name="name look-up", daemon=True).start()
            self._changed.wait_for(lambda: self._replicas, end_s - time.monotonic())
            if self._version() is not self._opened_with:
                self._drop_all()
            for _ in range(2):  # those that cannot be connected make room for others
                self._choose()
                self._changed.wait_for(self._known, end_s - time.monotonic())
            channels, states, self._turn = self._channels, self._states, self._turn + 1
            among = [one for one in channels if State.READY in states[one]] or list(channels)
            return channels[among[self._turn % len(among)]]

    def _drop_all(self) -> None:
        """Drop the channels; they close with their last call, as nothing refers to them."""
        self._opened_with = self._version()
        self._channels, self._states = dict[Replica, grpc.Channel](), dict[Replica, list[State]]()

    def _look_up(self) -> None:
        """Find the replicas behind the names, where they are too many for gRPC to connect to."""
        found = [Replica(one, name) for name in self._addresses for one in addresses_of(name)]
        with self._changed:
            self._replicas = found if len(found) > self._most else self._given
            self._changed.notify_all()

    def _choose(self) -> None:
        """Connect to those that come first for this edge, of those that did not fail of late."""
        now_s, states = time.monotonic(), self._states
        failed = [one for one, state in states.items() if State.TRANSIENT_FAILURE in state]
        before = {one: at_s for one, at_s in self._failed_s.items() if now_s - at_s < AVOID_S}
        avoided = self._failed_s = before | dict.fromkeys(failed, now_s)
        known = self._replicas or self._given
        order = sorted(known, key=lambda r: (avoided.get(r, -math.inf), rank(r, self._seed)))
        chosen = order[: self._most]
        self._channels = {one: self._channels.get(one) or self._opened(one) for one in chosen}
        self._states = {one: states.get(one) or [State.IDLE] for one in chosen}
        for replica in chosen:
            if replica not in states and len(known) > 1:  # one alone is not watched
                watched = partial(self._on_state, self._states[replica])
                self._channels[replica].subscribe(watched, try_to_connect=True)

    def _on_state(self, current: list[State], state: State) -> None:
        with self._changed:
            current[:] = [state]
            self._lost = self._lost or state is not State.READY
            self._changed.notify_all()

    def _known(self) -> bool:
        """Return whether a replica is connected, or none can be; one alone is not waited for."""
        states = {state for (state,) in self._states.values()}
        alone = len(self._replicas or self._given) == 1
        return alone or State.READY in states or states == {State.TRANSIENT_FAILURE}

    def _method(self, kind: str, *path: Any, **codec: Any) -> "_Method":
        return _Method(self, lambda channel: getattr(channel, kind)(*path, **codec))

    unary_unary = partialmethod(_method, "unary_unary")
    unary_stream = partialmethod(_method, "unary_stream")
    stream_stream = partialmethod(_method, "stream_stream")


class _Method:
    """A method of the service: waiting for a replica is a part of a call's ``timeout``."""

    def __init__(self, replicas: Replicas, of: Callable[[grpc.Channel], Any]) -> None:
        self._replicas, self._of = replicas, of

    def __call__(self, request: Any, timeout: float, **more: Any) -> Any:
        method, left_s = self._next(timeout)
        return method(request, timeout=left_s, **more)

    def future(self, request: Any, timeout: float) -> Any:
        method, left_s = self._next(timeout)
        return method.future(request, timeout=left_s)

    def _next(self, timeout_s: float) -> tuple[Any, float]:
        began_s = time.monotonic()
        method = self._of(self._replicas.next_channel(timeout_s))
        return method, timeout_s - (time.monotonic() - began_s)


def rank(one: Replica, seed: str) -> bytes:
    """Return the place of a replica for an edge, by rendezvous hashing (Thaler, 1998).

    So replicas have about as many edges each, and where one goes, only its edges move.
    """
    return sha256(f"{seed} {one.address}".encode()).digest()


def addresses_of(address: str) -> list[str]:
    """Return what ``HOST:PORT`` leads to now; itself where that is unknown, or a proxy's matter."""
    name, _, port = address.rpartition(":")
    host = name.strip("[]")
    from urllib.request import getproxies, proxy_bypass  # here: it loads what few commands need

    if address.startswith("unix") or (getproxies() and not proxy_bypass(host)):
        return [address]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return [address]
    hosts = sorted({str(at[0]) for *_, at in found})
    return [f"[{one}]:{port}" if ":" in one else f"{one}:{port}" for one in hosts]
