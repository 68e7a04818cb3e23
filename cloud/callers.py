"""What the service knows of its callers: the site, what it may send, and how much time it has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc

from cloud.limits import Bounds
from cloud.scheduling.waiting import UNKNOWN_SITE
from cloud.settings import CloudSettings
from process.tls import is_loopback
from protos.deadline import Clock, Deadline
from protos.messages import MAX_SITE_CHARACTERS, SITE_KEY

INTERNAL = "an internal error; the log of the service has it"
"""What a caller learns of a fault of the program."""

ANYONE = "*"
"""In ``trusted_proxies``: every caller without a certificate."""

_CERTIFICATE_NAMES = ("x509_common_name", "x509_subject_alternative_name")


def deadline_of(budget_s: float, left_s: float | None, bounds: Bounds, clock: Clock) -> Deadline:
    """Return the earliest deadline of caller, bounds and call, less the return margin."""
    budget_s = min(budget_s, bounds.max_budget_s)
    if left_s is not None:
        budget_s = max(0.0, min(budget_s, left_s))
    return Deadline.after(budget_s - min(bounds.return_margin_s, budget_s / 2), clock)


@dataclass(frozen=True)
class Caller:
    """Who sends a study: the name of its site, and whether it may send stat."""

    site: str
    may_stat: bool


def connection_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Return whose connection a call has: its address, with the name in any certificate."""
    address = peer_address(context.peer())
    named = next((text for name in _names(context) or () if (text := _text(name).strip())), "")
    return f"{named[:MAX_SITE_CHARACTERS]} at {address}" if named else address


def caller_of(context: grpc.aio.ServicerContext[Any, Any], settings: CloudSettings) -> Caller:
    """Return the caller of a gRPC call, see `named_caller`."""
    said = [value for key, value in context.invocation_metadata() or () if key == SITE_KEY]
    return named_caller(_names(context), said, peer_address(context.peer()), settings)


def _names(context: grpc.aio.ServicerContext[Any, Any]) -> list[str | bytes] | None:
    """Return the names in the certificate of a call; None without a certificate."""
    identity = context.auth_context()
    if not any(key in identity for key in ("x509_pem_cert", *_CERTIFICATE_NAMES)):
        return None
    return [name for key in _CERTIFICATE_NAMES for name in identity.get(key, ())]


def named_caller(
    names: Sequence[str | bytes] | None,
    said: Sequence[str | bytes],
    address: str,
    settings: CloudSettings,
) -> Caller:
    """Return the caller: a name in its certificate, else the address of its machine.

    ``names`` is None without a certificate. Such a caller may name its site itself, as ``said`` in
    ``overread-site``, only where the settings say so: otherwise it could take a new name with each
    study. So may a proxy whose certificate is known to the settings, for its own callers. Sites
    that may send stat are those of the settings; where these name none, those with a certificate
    and this machine.
    """
    certified, texts = names is not None, [_text(name) for name in names or ()]
    proxied = any(name in settings.trusted_proxies for name in texts if name != ANYONE)
    if proxied or not certified:
        may_name = proxied or ANYONE in settings.trusted_proxies
        texts = [*(map(_text, said) if may_name else ()), *texts, address]
    site = next((t for text in texts if (t := text.strip()[:MAX_SITE_CHARACTERS])), UNKNOWN_SITE)
    here = address == "unix" or is_loopback(f"{address}:0")
    allowed = site in settings.stat_sites if settings.stat_sites else certified or here
    return Caller(site, allowed)


def peer_address(peer: str) -> str:
    """Return the address of a machine without its port, from ``ipv4:HOST:PORT`` and the like."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else kind


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
