"""Arguments, configuration, logging, exit codes; nothing else."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from voiced import __version__, config

EXIT_ASKED_TO_STOP = 0
EXIT_FAILED = 1
EXIT_CONFIGURATION = 78  # EX_CONFIG of sysexits.h; the unit does not restart us for it

EXIT_S = 2
"""The interpreter waits for a thread that writes to the disk, for so long:
one that hangs is ended with us by the kernel, and what was written before is whole."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; returns the exit code."""
    args = _arguments(argv)
    try:
        settings = config.load(args.config)
    except config.ConfigError as exc:
        print(f"voiced: {exc}", file=sys.stderr)
        return EXIT_CONFIGURATION
    if args.check_config:
        print(f"{args.config}: valid")
        return EXIT_ASKED_TO_STOP

    # One small product per block: threads for it would only wake a second core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Imported here: a configuration is checked in a tenth of the time the devices' packages take.
    from voiced.app import App, Places
    from voiced.edge.control import ControlError
    from voiced.edge.service import set_up_logging

    set_up_logging()
    faulthandler.enable()  # the watchdog kills by SIGABRT: the journal gets all threads' stacks
    sys.setswitchinterval(0.0005)  # an audio thread waits this long for the interpreter, not 5 ms
    app = App(settings, Places(args.config, args.socket, args.state_dir))
    try:
        code = asyncio.run(app.run())
        signal.alarm(EXIT_S)
        return code
    except ControlError as exc:
        print(f"voiced: {exc}", file=sys.stderr)
        return EXIT_FAILED


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="voiced", description="The voice appliance daemon.")
    parser.add_argument("--config", type=Path, default=Path("/etc/voiced/voiced.toml"))
    parser.add_argument("--check-config", action="store_true", help="validate it and exit")
    parser.add_argument("--socket", type=Path, default=Path("/run/voiced/control.sock"))
    parser.add_argument("--state-dir", type=Path, default=Path("/var/lib/voiced"))
    parser.add_argument("--version", action="version", version=f"voiced {__version__}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
