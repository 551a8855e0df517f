"""The typer application, put together from the files of this folder."""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

import adaptome

_HELP = """Adapt foundation models with few trained parameters.

Start with `adaptome quickstart`: a real model on real data, without network, in minutes on a CPU."""

_PATH = """A run of your own, from a recipe that comes along:

adaptome recipes

adaptome recipes gsm8k-lora > mine.yaml

adaptome train mine.yaml output=runs/mine

adaptome eval runs/mine; adaptome predict runs/mine "..."; adaptome merge runs/mine merged-model

Every command tells its options and examples with `--help`."""

#: loggers that tell, whenever they are imported, of kernels that this machine has no use for
_CHATTY = ("torchao", "bitsandbytes", "torch.utils._pytree")


def build() -> typer.Typer:
    """The application with every command found in this folder."""
    app = typer.Typer(
        help=_HELP,
        epilog=_PATH,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    for name in commands():
        importlib.import_module(f"{__package__}.{name}").register(app)
    return app


def commands() -> list[str]:
    """Names of the files that hold a command (those not opening with an underscore), sorted."""
    return sorted(
        m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.name.startswith("_")
    )


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return
    libraries = [f"{name} {found}" for name in ("torch", "transformers") if (found := _installed(name))]
    print(
        f"adaptome {adaptome.__version__} ({', '.join([*libraries, 'Python ' + platform.python_version()])})"
    )
    raise typer.Exit


def _installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_versions, is_eager=True, help="Show versions and exit."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the whole traceback of a failure; goes anywhere on the line."),
    ] = False,
) -> None:
    # `debug` is taken off the line before it gets here (cli.main); it is declared for the help.
    del version, debug
    for library in _CHATTY:
        logging.getLogger(library).setLevel(logging.ERROR)
    if not sys.stderr.isatty():  # read when the libraries are imported: no bars of theirs in a log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    _tell_progress()


class _Lines(logging.Handler):
    """Messages as plain lines on standard error, whatever it is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def _tell_progress() -> None:
    """Let training tell how it goes where there is no terminal for a bar: a log file, a batch job."""
    progress = logging.getLogger("adaptome.training.progress")
    if not any(isinstance(handler, _Lines) for handler in progress.handlers):
        progress.addHandler(_Lines())
        progress.setLevel(logging.INFO)
