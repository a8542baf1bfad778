"""The command's first lines: importing the rest takes a while, and may be interrupted."""

from __future__ import annotations

import sys


def main() -> None:
    """As ``cli.main``; Ctrl-C before that is there ends with its exit code too."""
    try:
        from model_delivery.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("✗ interrupted before anything was begun [cli.interrupted]\n")
        sys.exit(5)
    run()
