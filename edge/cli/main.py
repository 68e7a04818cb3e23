"""The command ``overread-edge``: reads one study, or watches an inbox. Not a medical device."""

import os
import sys
from typing import Any

from edge.access import UMASK
from process.command_line import PlainGroup, program

MODULES = {
    "screen": "edge.cli.screen",
    "run": "edge.cli.agent",
    **dict.fromkeys(("queue", "requeue", "targets", "resend"), "edge.cli.studies"),
    **dict.fromkeys(("doctor", "password", "certs"), "edge.cli.agent"),
    "audit": "edge.cli.audit",
    "rules": "edge.cli.rules",
    "models": "edge.cli.models",
}
"""The commands in the order of the help, with the modules whose ``app`` has them."""


class Commands(PlainGroup):
    """The program: it says what went wrong in any command, and ends with the status for it."""

    modules = MODULES

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except Exception as error:  # which errors have a sentence is known to what is loaded below
            from edge.cli.output import ERRORS, failed  # a command has loaded it

            if not isinstance(error, ERRORS):
                raise
            raise failed(error) from error


app = program(
    "overread-edge",
    "Reads chest CT for lung nodules beside the scanner. Not a medical device.",
    group=Commands,
)


def main() -> None:
    """Run the command ``overread-edge``."""
    os.umask(UMASK)
    # a third of openvino's modules: the converter of models, with telemetry, which nothing uses
    sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]
    app()
