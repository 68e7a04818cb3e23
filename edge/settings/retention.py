"""The settings of what is removed after a time: the tables ``[retention]`` and ``[pending]``."""

from pydantic import Field

from process.settings import Table


class RetentionSettings(Table):
    """When studies that are done and their reports are removed.

    Attributes:
        studies_days: days after which the files of a study that is done are removed; None: never.
        studies_gb: largest size of all these in gigabytes; beyond it, the oldest are removed.
        reports_days: days after which a report that cannot change is removed; None: never.
        reports_gb: largest size of all these in gigabytes; beyond it, the oldest are removed.
    """

    studies_days: float | None = Field(default=None, gt=0, le=36_500.0)
    studies_gb: float | None = Field(default=None, gt=0)
    reports_days: float | None = Field(default=None, gt=0, le=36_500.0)
    reports_gb: float | None = Field(default=None, gt=0)


class PendingSettings(Table):
    """When a pending read is given up.

    Attributes:
        max_days: days of running time after which a pending read is given up.
        max_mb: largest size of the database in megabytes; beyond it, the oldest pending read is
            given up.
    """

    max_days: float = Field(default=30.0, gt=0, le=36_500.0)
    max_mb: float = Field(default=2000.0, ge=1)
