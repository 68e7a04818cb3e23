"""A process that answers as `evaluation.links.edge_worker`, and ends at study 13."""

import json
import sys


def run(arguments: list[str]) -> None:
    """Answer every line with what it was started with and asked for."""
    for line in sys.stdin:
        command = json.loads(line)
        if command.get("read") == 13:
            print("thirteen is unlucky", file=sys.stderr)
            raise SystemExit(4)
        answer = {"opened": " ".join(arguments)} if "open" in command else command
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    run(sys.argv[1:])
