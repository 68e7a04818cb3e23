"""Which site a caller is of: by its certificate, else by what it says, else unknown."""

from __future__ import annotations

from typing import Any

import grpc

from cloud.queue import UNKNOWN_SITE
from protos.site import MAX_SITE_CHARACTERS, SITE_KEY

_COMMON_NAME = "x509_common_name"


def site_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The common name of the caller's certificate, or its ``overread-site``, or ``unknown``.

    With mutual TLS nobody can spend another site's quota by giving its name.
    """
    named = [
        *context.auth_context().get(_COMMON_NAME, ()),
        *(value for key, value in context.invocation_metadata() or () if key == SITE_KEY),
    ]
    for name in named:
        text = name.decode(errors="replace") if isinstance(name, bytes) else name
        if text := text.strip()[:MAX_SITE_CHARACTERS]:
            return text
    return UNKNOWN_SITE
