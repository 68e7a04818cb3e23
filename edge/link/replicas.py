"""One channel to several replicas: each has a connection and a certificate of its own.

gRPC would take a list of addresses too, but compares each certificate with the whole list.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial, partialmethod
from typing import Any, Self

import grpc
from grpc import ChannelConnectivity as State


class Replicas:
    """What a stub needs of a channel; each call goes to the next replica that is connected.

    ``opened`` opens a channel to one address. When ``version`` returns another object, all are
    opened again; open calls end on the channels on which they began. A call waits ``connect_s`` at
    most until a replica is connected.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        opened: Callable[[str], grpc.Channel],
        version: Callable[[], object],
        connect_s: float,
    ) -> None:
        self._addresses, self._opened, self._version = addresses, opened, version
        self._connect_s, self._changed, self._turn = connect_s, threading.Condition(), 0
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels:
            channel.close()

    def next_channel(self, wait_s: float) -> grpc.Channel:
        """Return the channel of the next replica; wait where none is connected yet."""
        with self._changed:
            if self._version() is not self._opened_with:
                self._open()
            self._changed.wait_for(self._known, min(wait_s, self._connect_s))
            states, self._turn = self._states, self._turn + 1
            ready = [n for n, state in enumerate(states) if state is State.READY]
            among = ready or range(len(states))
            return self._channels[among[self._turn % len(among)]]

    def _open(self) -> None:
        """Open the channels; those before close with their last call, as nothing refers to them."""
        self._opened_with = self._version()
        self._channels = [self._opened(address) for address in self._addresses]
        self._states = states = [State.IDLE] * len(self._channels)
        if len(states) > 1:
            for number, channel in enumerate(self._channels):
                channel.subscribe(partial(self._on_state, states, number), try_to_connect=True)

    def _on_state(self, states: list[State], number: int, state: State) -> None:
        with self._changed:
            states[number] = state
            self._changed.notify_all()

    def _known(self) -> bool:
        """Return whether a replica is connected, or none can be; one alone is not waited for."""
        states = self._states
        return len(states) == 1 or State.READY in states or set(states) == {State.TRANSIENT_FAILURE}

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
