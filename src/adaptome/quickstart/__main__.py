"""`python -m adaptome.quickstart`: the same as `adaptome quickstart`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adaptome.core.errors import AdaptomeError
from adaptome.quickstart.jobs import run_job
from adaptome.quickstart.run import quickstart


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed with a message, 2 bad usage, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m adaptome.quickstart", description=__doc__)
    parser.add_argument("--output", default="quickstart-output", help="the folder to write (%(default)s)")
    parser.add_argument(
        "--predict", metavar="SENTENCE", help="classify a sentence instead, by the adapter of --adapter"
    )
    parser.add_argument(
        "--adapter", default="quickstart-output/lora", help="a trained method's folder (%(default)s)"
    )
    given = parser.parse_args(arguments)
    try:
        if given.predict is None:
            quickstart(given.output)
        else:
            found = run_job("predict", Path(given.adapter), given.predict)
            print(f"{found['label']} ({found['probabilities'][found['label']]:.0%})")
    except AdaptomeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: nothing was written.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
