"""The command line. ``main`` is the entry point; nothing heavy is imported before a command asks for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 a bug or something that ``doctor`` found broken, 2 usage, configuration or model, 3 data, 4 too few replies,
    5 a run directory, 130 interrupted, 143 terminated.
    """
    from fedquilt.cli.app import app
    from fedquilt.errors import FedquiltError

    given = list(sys.argv[1:] if argv is None else argv)
    args = [word for word in given if word != "--debug"]  # allowed anywhere: it is added after something went wrong
    try:
        app(args, prog_name="fedquilt")
    except FedquiltError as error:
        if len(args) < len(given):
            raise
        from fedquilt.cli.show import complain

        complain(error)
        return error.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
