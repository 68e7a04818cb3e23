"""The program ``overread-eval``, whose code only the checkout has."""

import sys
from importlib.util import find_spec

from process.command_line import how_to_install, in_checkout


def main() -> None:
    """Run ``overread-eval``, or say where it is."""
    if find_spec("evaluation") is None:
        sys.exit(in_checkout("overread-eval", "evaluation"))
    try:
        from evaluation.__main__ import main as run
    except ModuleNotFoundError as error:
        if (line := how_to_install(error)) is None:
            raise
        sys.exit(line)
    run()
