"""Errors of making DICOM objects.

EdgeError
└── NotExportable   no object of this report can be made, and why
"""

from edge.errors import EdgeError


class NotExportable(EdgeError):
    """No DICOM object can be made of this report; the message says why."""
