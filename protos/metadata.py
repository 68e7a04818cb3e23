"""The contract's gRPC metadata, besides ``traceparent``: the caller's site."""

SITE_KEY = "overread-site"
"""Request metadata: the caller's site, where no certificate names it."""

MAX_SITE_CHARACTERS = 64
