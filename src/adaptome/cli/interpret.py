"""`adaptome interpret`: what a finished run changed, in heads, directions and texts."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json

if TYPE_CHECKING:
    from adaptome.interpretation import TextSpace

EXAMPLES = """Examples:

adaptome interpret out

adaptome interpret out --texts vocabulary --top 20

adaptome interpret out --texts descriptions.txt --space openai/clip-vit-base-patch16 --labels heads.json --page heads.html
"""


class Score(str, Enum):
    """How heads are ranked."""

    norm = "norm"
    slices = "slices"


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("interpret", epilog=EXAMPLES)(interpret)


def interpret(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The output folder of a finished run.", show_default=False)
    ],
    adapter: Annotated[str, typer.Option(help="Which, where the run has several.")] = "default",
    top: Annotated[int, typer.Option(min=1, help="How many heads and directions.")] = 10,
    score: Annotated[
        Score,
        typer.Option(
            help="Of heads: norm of what they own of the change; slices as the CLIP-SVD paper has it."
        ),
    ] = Score.norm,
    relative: Annotated[
        bool, typer.Option("--relative", help="Rank by shares of the weights' norms.")
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(help="JSON: path of an attention -> list of a label, or null, for each of its heads."),
    ] = None,
    texts: Annotated[
        str | None,
        typer.Option(
            help="Describe directions by the texts of this file, one on a line; by tokens of a language model: vocabulary."
        ),
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="The CLIP that the run's encoder was taken from: a folder or hub id.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write it with charts to this HTML file, too.")] = None,
    json: JsonOption = False,
) -> None:
    """Tell which attention heads and which directions of the weights a finished run changed most."""
    if space is not None and texts is None:
        raise typer.BadParameter("--space needs --texts.", param_hint="--space")
    from adaptome import interpretation
    from adaptome.training import load_run

    loaded = load_run(run)
    found = interpretation.interpret(
        loaded.model,
        adapter,
        top=top,
        score=score.value,
        relative=relative,
        labels=None if labels is None else interpretation.read_labels(labels),
        space=None if texts is None else _space(loaded, texts, space),
    )
    if page is not None:
        found.page().write(page)
    if json:
        print_json(found.to_dict())
    else:
        print(found)


def _space(loaded: Any, texts: str, clip: str | None) -> TextSpace:
    from adaptome.data.textfile import lines_of
    from adaptome.interpretation import text_space

    given = None if texts == "vocabulary" else [line for line in lines_of(Path(texts)) if line.strip()]
    if clip is None:
        return text_space(loaded.model, loaded.processor, given)
    from transformers import AutoModel, AutoTokenizer

    from adaptome.core.errors import ModelError

    try:
        model, tokenizer = AutoModel.from_pretrained(clip), AutoTokenizer.from_pretrained(clip)
    except (OSError, ValueError) as error:
        raise ModelError(f"--space {clip}: {error}") from error
    return text_space(model, tokenizer, given)
