"""The command ``overread-cloud``: runs the second reader as a service. Not a medical device."""

from typing import ClassVar

from process.command_line import PlainGroup, program


class _Commands(PlainGroup):
    modules: ClassVar = {"serve": "cloud.run", "describe": "cloud.describe"}


app = program(
    "overread-cloud",
    "The second reader of chest CT as a service. Not a medical device.",
    group=_Commands,
)


def main() -> None:
    """Run ``overread-cloud``."""
    app()


if __name__ == "__main__":
    main()
