"""Which site a caller is of: by its certificate, else by what it says, else unknown."""

from __future__ import annotations

from typing import Any

import grpc

from cloud.queue import UNKNOWN_SITE
from protos.metadata import MAX_SITE_CHARACTERS, SITE_KEY

_CERTIFICATE = "x509_pem_cert"
_NAMES = ("x509_common_name", "x509_subject_alternative_name")


def site_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The name in the caller's certificate, common or alternative, and ``unknown`` if it has none.

    Who shows no certificate is believed what its ``overread-site`` says. So with mutual TLS nobody
    can spend another site's quota by giving its name.
    """
    shown = context.auth_context()
    if _CERTIFICATE in shown or any(name in shown for name in _NAMES):
        named: list[str | bytes] = [value for name in _NAMES for value in shown.get(name, ())]
    else:
        named = [value for key, value in context.invocation_metadata() or () if key == SITE_KEY]
    for name in named:
        text = name.decode(errors="replace") if isinstance(name, bytes) else name
        if text := text.strip()[:MAX_SITE_CHARACTERS]:
            return text
    return UNKNOWN_SITE
