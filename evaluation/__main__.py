"""``overread-eval``: one command for every figure that the project states.

The result goes to stdout, as a table or as JSON; progress and remarks go to stderr.
"""

from evaluation.accuracy.calibration import calibration
from evaluation.accuracy.detect import detect
from evaluation.accuracy.luna16 import froc
from evaluation.accuracy.nodules import nodules
from evaluation.accuracy.whole_command import whole
from evaluation.lesion_insertion.command import lesion_insertion
from evaluation.lesion_insertion.spheres import characterization
from evaluation.links.dead_cloud import dead_cloud_command
from evaluation.links.link import link_command
from evaluation.links.wire import wire_command
from evaluation.load.beside import beside_command
from evaluation.load.hostile_clients import hostile_clients_command
from evaluation.load.load import load_command
from evaluation.load.replicas import replicas_command
from evaluation.load.scaling import scaling_command
from evaluation.receiving.endurance import endurance_command
from evaluation.receiving.receiving import receiving_command
from evaluation.recovery.clock_jumps import clock_jumps_command
from evaluation.recovery.flaps import flaps_command
from evaluation.recovery.full_disk import full_disk_command
from evaluation.recovery.kills import kills_command
from evaluation.recovery.nothing_lost import nothing_lost_command
from evaluation.robustness.fuzz import fuzz_command
from evaluation.robustness.reading import reading_command
from evaluation.robustness.receive_fuzz import receive_fuzz_command
from evaluation.run import Command, register, run_program
from evaluation.screenshots import screenshots_command
from evaluation.stability.command import robustness
from evaluation.status_pictures import status_pictures_command
from evaluation.timing.latency import latency
from evaluation.timing.memory import memory
from evaluation.timing.network import network
from process.command_line import program

app = program(
    "overread-eval",
    "Measures Overread: one command for every claim. Not a medical device.",
    completion=False,
)


COMMANDS = (
    beside_command, clock_jumps_command, dead_cloud_command, endurance_command, flaps_command,
    full_disk_command, fuzz_command, hostile_clients_command, kills_command, link_command,
    load_command, nothing_lost_command, reading_command, receive_fuzz_command, receiving_command,
    replicas_command, scaling_command, screenshots_command, status_pictures_command, wire_command,
)  # fmt: skip

MEASURED: tuple[Command, ...] = (
    whole, nodules, lesion_insertion, calibration, characterization, detect, robustness, froc,
    latency, network, memory,
)  # fmt: skip
"""The commands that are on the harness of `evaluation.run`."""

for _command in COMMANDS:
    app.command(_command.__name__.removesuffix("_command").replace("_", "-"))(_command)
register(app, MEASURED)


def main() -> None:
    """Run ``overread-eval``; an error ends it with one line on standard error."""
    run_program(app)


if __name__ == "__main__":
    main()
