"""The command line: `adaptome <command>`.

A command is one file of this folder, `cli/<command>.py`, with a function `register(app)` that puts it on the
typer application; it is found by being there. At its top a command imports typer and nothing heavy: torch and
the rest of adaptome come inside the function, so that `adaptome --help` answers at once.

Exit codes: 0 done, 1 failed (an AdaptomeError's message on stderr; `--debug` shows where), 2 bad usage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from adaptome.core.errors import AdaptomeError, MissingExtraError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code.

    Args:
        arguments: the words after `adaptome`; None takes them from the process.

    Raises:
        SystemExit: always, with the exit code.
        AdaptomeError: what a command raised, when `--debug` is among the arguments.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        try:
            from adaptome.cli._app import build
        except ModuleNotFoundError as error:
            if error.name not in ("typer", "rich", "click"):
                raise
            raise MissingExtraError(error.name, "cli") from error
        build()([word for word in words if word != "--debug"], prog_name="adaptome")
    except AdaptomeError as error:
        if debug:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
