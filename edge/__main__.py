"""Run ``overread-edge`` as ``python -m edge``."""

from edge.cli.main import main

if __name__ == "__main__":
    main()
