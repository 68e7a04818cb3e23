"""Errors of the edge itself, apart from the study and from the link.

Errors of a study are in `imaging.errors`, errors of the link and of the cloud in `protos.errors`.
"""


class EdgeError(Exception):
    """The edge cannot work with these settings or this model."""


class BadSettings(EdgeError):
    """A setting is wrong; the message names it, its value and the allowed values."""


class MissingPath(EdgeError):
    """The study's path does not exist or must not be read."""


class UnfitFolder(EdgeError):
    """The report cannot go into this folder: the message says why, and what to do."""


class UnfitModel(EdgeError):
    """The screening model's manifest lacks a setting, or one is out of range."""


class NotExportable(EdgeError):
    """A report has no DICOM objects although it should; the message says why."""


class NotDicom(NotExportable):
    """There is nothing that objects could be made of: the study was no DICOM series."""


class NotApplicable(EdgeError):
    """One kind of object does not apply to a study; the others are made."""
