"""`adaptome predict`: use a finished run."""

from __future__ import annotations

import re
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

adaptome predict runs/scenes pictures/ --output found

adaptome predict runs/change before.tif after.tif --output found

adaptome predict runs/speech clip.mp4 --set task.recognise=audio --set task.audio_rate=16

adaptome predict runs/entities notes/ letter.txt

adaptome predict runs/pets photo.jpg "a red panda" "a raccoon"

adaptome predict runs/faces a.png b.png

adaptome predict runs/faces probe.png --gallery people/
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
            help="Sentences, prompts, queries, or paths of pictures, videos or sounds; a folder stands for the files in it.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Take the inputs from this file, one on a line; - for standard input.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write predictions.jsonl here, and the answers that are pictures."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A change to its recipe, as task.num_beams=4."),
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(
            help="Rank the pictures of this folder by their likeness to each input, for runs that recognise faces."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Items of the gallery that are told of each input.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs run together.")] = 32,
    json: JsonOption = False,
) -> None:
    """Predict with a finished run."""
    if bool(inputs) == (file is not None):
        raise typer.BadParameter("give either inputs or --file.", param_hint="INPUT")
    words = inputs or _lines(file)
    from adaptome.tasks.showing import plain
    from adaptome.training import load_run

    if gallery is None:
        loaded = load_run(run, changes or [])
        task = loaded.task
        given = task.given(words)
        found = task.predict(loaded.model, loaded.processor, [one.value for one in given], batch_size)
    else:
        from adaptome.training.ranking import ranked

        loaded, given, found = ranked(run, words, gallery, top, batch_size, changes or [])
        task = loaded.task
    told = [plain(prediction) for prediction in found]
    names = [one.name for one in given]
    shown = [task.shown(one.value, made) for one, made in zip(given, found, strict=True)]
    if output is not None:
        _write(output, names, shown, told)
    documents = [(None if one.name == one.value else one.name, str(one.value)) for one in given]
    if any(name and "entities" in made for (name, _), made in zip(documents, found, strict=True)):
        _show_documents(documents, found, json)
        return
    if json:
        print_json(told)
        return
    for name, one in zip(names, shown, strict=True):
        _print(name, one)


def _print(name: str, shown: Any) -> None:
    """A prediction for people: the answer and the input in a line; a ranking of what was retrieved, or without an answer, below it."""
    pictures = "" if shown.answer or not shown.made else ", ".join(shown.made)
    told = bool(shown.answer or pictures)
    print(f"{_one_line(shown.answer) or pictures}\t{_one_line(name)}" if told else _one_line(name))
    if told and shown.bounded:  # labels, of which the answer is the likeliest
        return
    for answer, score, note in shown.ranked:
        print(f"  {score:.3f}  {_one_line(answer)}{'  ' * bool(note)}{note}")


def _write(folder: Path, names: Sequence[str], shown: Sequence[Any], told: Sequence[Any]) -> None:
    """One JSON line for each input in predictions.jsonl, its pictures as <input>-<what>.png, and what else it is as files."""
    import json

    from adaptome.core.files import write_atomic
    from adaptome.tasks.showing import png_bytes

    folder.mkdir(parents=True, exist_ok=True)
    lines, taken = [], set[str]()
    for number, (name, one, prediction) in enumerate(zip(names, shown, told, strict=True), 1):
        stem = re.sub(r"[^\w.-]+", "-", Path(name).stem)[:60].strip("-.") or "input"
        stem = stem if stem not in taken else f"{stem}-{number}"
        taken.add(stem)
        files = {what: f"{stem}-{what}.png" for what in one.made}
        for what, file in files.items():
            write_atomic(folder / file, png_bytes(one.made[what]))
        kept = {what: f"{stem}-{what}" for what in one.files}
        for what, file in kept.items():
            write_atomic(folder / file, one.files[what])
        line = {
            "input": name,
            "prediction": prediction,
            **({"pictures": files} if files else {}),
            **({"files": kept} if kept else {}),
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    write_atomic(folder / "predictions.jsonl", "".join(f"{line}\n" for line in lines))


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


def _one_line(text: str) -> str:
    r"""The text with its line breaks and tabs shown as \n and \t: a prediction is a line; --json has it as it is."""
    return text.replace("\r", "").replace("\n", r"\n").replace("\t", r"\t")
