"""`adaptome predict`: use a finished run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json
from adaptome.core.errors import DataError

EXAMPLES = """Examples:

adaptome predict runs/adaptome "the first sentence" "the second"

adaptome predict runs/adaptome --file sentences.txt --json

adaptome predict runs/sounds clips/one.wav clips/two.wav

adaptome predict runs/town/2-adapter "? : works_for(?, acme) and not lives_in(?, ashford)"

adaptome predict runs/entities notes/ letter.txt
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("predict", epilog=EXAMPLES)(predict)


def predict(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The output folder of a finished run.", show_default=False)
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Sentences, prompts, queries, or paths of pictures, sounds or (for entities) texts and folders of texts.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Take the inputs from this file, one on a line; - for standard input.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs run together.")] = 32,
    json: JsonOption = False,
) -> None:
    """Predict with a finished run."""
    if bool(inputs) == (file is not None):
        raise typer.BadParameter("give either inputs or --file.", param_hint="INPUT")
    given = inputs or _lines(file)
    from adaptome.data.documents import read_documents
    from adaptome.training import load_run

    used = load_run(run)
    documents = (
        read_documents(given) if used.task.documents and file is None else [(None, one) for one in given]
    )
    found = used.task.predict(used.model, used.processor, [text for _, text in documents], batch_size)
    if any(name for name, _ in documents):
        _show_documents(documents, found, json)
        return
    if json:
        print_json(found)
        return
    for one, prediction in zip(given, found, strict=True):
        if isinstance(prediction, Mapping) and "answers" in prediction:
            print(one, *map(_answer, prediction["answers"]), sep="\n")
        else:
            print(f"{_short(prediction)}\t{one}")


def _show_documents(
    documents: Sequence[tuple[str | None, str]], found: Sequence[Mapping[str, Any]], json: bool
) -> None:
    """A line for every entity: its file, where it begins and ends in characters, its type and its text."""
    if json:
        print_json([{"file": name, **one} for (name, _), one in zip(documents, found, strict=True)])
        return
    for (name, _), one in zip(documents, found, strict=True):
        for span in one["entities"]:
            print(
                name or "-",
                span["start_char"],
                span["end_char"],
                span["type"],
                _one_line(span["text"]),
                sep="\t",
            )


def _lines(file: Path | None) -> list[str]:
    """The lines of a file that are not empty."""
    from adaptome.data.textfile import read_text

    try:
        text = sys.stdin.read() if str(file) == "-" else read_text(Path(str(file)))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}.") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{file} holds no line to predict.")
    return lines


def _short(prediction: Any) -> str:
    """What a prediction says in a line: the label with its probability, the labels, the tags, or the completion."""
    if not isinstance(prediction, Mapping):
        return str(prediction)
    if "label" in prediction:
        return f"{prediction['label']} ({prediction['score']:.1%})"
    for key in ("labels", "entities", "completion"):
        if key in prediction:
            value = prediction[key]
            text = value if isinstance(value, str) else ", ".join(map(_part, value))
            return _one_line(text) or "-"
    return str(dict(prediction))


def _answer(answer: Mapping[str, Any]) -> str:
    """One of several answers to a query: how true it is, and the edges that speak for it."""
    edges = ", ".join(f"{step['edge']} {step['truth']:.2f}" for step in answer["because"])
    return f"  {answer['truth']:.3f}  {answer['entity']}  because {edges}"


def _one_line(text: str) -> str:
    r"""The text with its line breaks and tabs shown as \n and \t: a prediction is a line; --json has it as it is."""
    return text.replace("\r", "").replace("\n", r"\n").replace("\t", r"\t")


def _part(value: Any) -> str:
    return f"{value['type']}: {value['text']}" if isinstance(value, Mapping) else str(value)
