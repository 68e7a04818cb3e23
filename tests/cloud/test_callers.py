"""Who a caller is: by its certificate, its proxy, or its machine; and whether it may send stat."""

from types import SimpleNamespace
from typing import Any

import pytest

from cloud.callers import caller_of
from cloud.settings import CloudSettings
from protos.messages import MAX_SITE_CHARACTERS, SITE_KEY

CN, ALT, PEM = "x509_common_name", "x509_subject_alternative_name", "x509_pem_cert"
HERE = "[2001:db8::7]"
ANY, ENVOY = ("*",), ("envoy",)


def caller(identity: dict[str, list[bytes]], said: str | None = None, **settings: Any) -> Any:
    """The caller with this certificate, as gRPC gives it, who says this site."""
    context: Any = SimpleNamespace(
        auth_context=lambda: identity,
        invocation_metadata=lambda: None if said is None else ((SITE_KEY, said),),
        peer=lambda: "ipv6:%5B2001:db8::7%5D:50000",
    )
    return caller_of(context, CloudSettings(**settings))


@pytest.mark.parametrize(
    ("identity", "said", "proxies", "site"),
    [
        ({}, None, ANY, HERE),
        ({}, "north", ANY, "north"),
        ({}, "north", (), HERE),
        ({}, "north", ENVOY, HERE),
        ({}, "n" * 500, ANY, "n" * MAX_SITE_CHARACTERS),
        ({"transport_security_type": [b"ssl"]}, "north", ANY, "north"),
        ({CN: [b"south"]}, "north", ANY, "south"),
        ({CN: [b"south"]}, "north", ENVOY, "south"),
        ({CN: [b"*"]}, "north", ANY, "*"),
        ({PEM: [b"..."], CN: [b""], ALT: [b"east", b"e2"]}, "north", ANY, "east"),
        ({PEM: [b"..."], CN: [b"south"], ALT: [b"east"]}, None, (), "south"),
        ({PEM: [b"..."]}, "north", ANY, "unknown"),
        ({CN: [b" "]}, "north", (), "unknown"),
        ({CN: [b"envoy"]}, "north", ENVOY, "north"),
        ({CN: [b"x"], ALT: [b"envoy"]}, "north", ENVOY, "north"),
        ({CN: [b"envoy"]}, None, ENVOY, "envoy"),
    ],
)
def test_the_site_is_that_of_the_certificate_or_named_by_a_trusted_proxy(
    identity: dict[str, list[bytes]], said: str | None, proxies: tuple[str, ...], site: str
) -> None:
    """A certificate without a name gives none: it cannot take another site's quota."""
    assert caller(identity, said, trusted_proxies=proxies).site == site


@pytest.mark.parametrize(
    ("identity", "stat_sites", "may"),
    [
        ({}, (), False),
        ({CN: [b"south"]}, (), True),
        ({CN: [b"south"]}, ("north",), False),
        ({CN: [b"south"]}, ("north", "south"), True),
        ({}, (HERE,), True),
    ],
)
def test_stat_needs_a_certificate_or_a_setting(
    identity: dict[str, list[bytes]], stat_sites: tuple[str, ...], may: bool
) -> None:
    assert caller(identity, stat_sites=stat_sites).may_stat is may
