"""Open and run models."""

MANIFEST, SIGNATURES = "manifest.toml", "manifest.sig"
"""The names of the files in a folder of models."""
