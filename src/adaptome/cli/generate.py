"""`adaptome generate`: pictures of a text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json

EXAMPLES = """Examples:

adaptome generate runs/dog "a photo of sks dog on a beach"

adaptome generate runs/dog "a photo of sks dog" --grid 3x3 --seed 7 --guidance 7.5

adaptome generate runs/dog "a painting of sks dog" --image beach.jpg --strength 0.6

adaptome generate runs/control "a house by a lake" --condition canny:photo.jpg --condition depth:depth.png --ready

adaptome generate stabilityai/stable-diffusion-xl-base-1.0 "a photo of a dog" --count 100 --output data/class-dog
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("generate", epilog=EXAMPLES)(generate)


def generate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="The output folder of a finished run; or a pipeline's folder or hub id, for the base alone.",
            show_default=False,
        ),
    ],
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="What is to be shown.", show_default=False)
    ],
    image: Annotated[
        Path | None, typer.Option(help="A picture to begin from, in place of noise.", show_default=False)
    ] = None,
    strength: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="With --image: the share of the steps that change it.")
    ] = 0.7,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:FILE",
            help="Of a controlled model: a kind such as canny, and the picture that it is taken from. Several act together.",
            show_default=False,
        ),
    ] = None,
    ready: Annotated[
        bool, typer.Option("--ready", help="The files of --condition are conditions already (edges, maps).")
    ] = False,
    instruction: Annotated[
        str | None,
        typer.Option(help="The words that name the condition to the gate.", show_default="the kind's"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the first picture; the next have the next numbers.", show_default="the run's"),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures of each text.")] = 1,
    grid: Annotated[
        str | None,
        typer.Option(help="Columns x rows of one picture of several, as 3x3.", show_default=False),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the sampler.", show_default="the run's")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How much the text counts.", show_default="the run's")
    ] = None,
    negative: Annotated[
        str | None, typer.Option(help="What is not to be shown.", show_default="the run's")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="A scheduler of diffusers, as DPMSolverMultistepScheduler.", show_default="the run's"
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Width x height in pixels.", show_default="the run's")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder that the pictures are written to.")
    ] = Path("generated"),
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures made together.")] = 4,
    adapter: Annotated[
        Path | None,
        typer.Option(
            help="An adapter beside the run's: a folder of adaptome, or a .safetensors file of diffusers, kohya or LyCORIS.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Without the run's adapters.")] = False,
    json: JsonOption = False,
) -> None:
    """Make pictures of texts; each PNG holds what it was made with."""
    from adaptome.tasks.image_classification import to_rgb
    from adaptome.tasks.image_generation import made

    if not condition and (ready or instruction is not None):
        raise typer.BadParameter("it says how --condition is taken: give one.", param_hint="--ready" if ready else "--instruction")  # fmt: skip
    columns, rows = _pair(grid, "--grid") if grid else (0, 0)
    count = columns * rows if grid else count
    model, how, known = _opened(run, base, adapter)
    changed: dict[str, Any] = {"steps": steps, "guidance": guidance, "negative": negative, "sampler": sampler}
    changed |= dict(zip(("width", "height"), _pair(size, "--size"), strict=True)) if size else {}
    changed |= {"strength": strength} if image is not None else {}
    first = how.seed if seed is None else seed
    given = {name: value for name, value in changed.items() if value is not None}
    asked = [_with(how, given, text, first + number) for text in texts for number in range(count)]
    start = None if image is None else to_rgb(image)
    by = _conditions(condition, ready, instruction, model, known, (asked[0].width, asked[0].height)) if condition else None  # fmt: skip
    with _bar(asked, batch_size, image is not None) as step:
        pictures = made(model, asked, batch_size, start, step, None if by is None else [by] * len(asked))
    source: dict[str, Any] = {"run": run, "adapters": not base}
    source |= {k: str(v) for k, v in (("image", image), ("adapter", adapter)) if v is not None}
    source |= {"condition": condition, "instructions": [words for _, words in by]} if by else {}
    written = _written(output, asked, pictures, count, (grid, columns) if grid else None, source)
    if json:
        print_json(written)
        return
    for one in written:
        print(one["file"])


def _written(
    folder: Path,
    asked: list[Any],
    pictures: list[Any],
    count: int,
    grid: tuple[str, int] | None,
    source: dict[str, Any],
) -> list[dict[str, Any]]:
    """The files of the pictures, `count` of each text, and what they were made with.

    Args:
        grid: as the command line has it, and its columns: a text's pictures as one.
        source: what all were made with.
    """
    from adaptome.core.files import write_atomic
    from adaptome.tasks.image_generation import grid as one_picture
    from adaptome.tasks.image_generation import png, told

    folder.mkdir(parents=True, exist_ok=True)
    written: list[dict[str, Any]] = []
    for begin in range(0, len(asked), count):
        own, made = asked[begin : begin + count], pictures[begin : begin + count]
        stem = _stem(own[0].text)
        if grid:
            settings = {**told(own[0]), **source, "seeds": [one.seed for one in own]}
            files = [(f"{stem}-{grid[0]}", one_picture(made, grid[1]), settings)]
        else:
            pairs = zip(made, own, strict=True)
            files = [(f"{stem}-{one.seed}", picture, {**told(one), **source}) for picture, one in pairs]
        for name, picture, settings in files:
            path = _free(folder, name, {str(one["file"]) for one in written})
            write_atomic(path, png(picture, settings))
            written.append({"file": str(path), **settings})
    return written


def _opened(run: str, base: bool, adapter: Path | None) -> tuple[Any, Any, dict[str, Any]]:
    """The model with what is to act on it, how it makes a picture unless told otherwise, and its annotators by name."""
    import adaptome as ad

    model, how, known = _model(run)
    kept = [] if base else list(ad.active(model)) if ad.adapters(model) else []
    if adapter is not None:
        ad.load(model, adapter, "given")
        kept.append("given")
    if ad.adapters(model):
        ad.activate(model, kept)
    return model, how, known


def _model(run: str) -> tuple[Any, Any, dict[str, Any]]:
    from adaptome.core.errors import RecipeError
    from adaptome.tasks.image_generation import Making

    if (Path(run) / "model_index.json").is_file() or not Path(run).is_dir():
        from adaptome.models.text_to_image import TextToImage

        model = TextToImage.from_settings(pipeline=run)
        return model, Making("", width=model.side, height=model.side), {}
    from adaptome.training import load_run

    loaded = load_run(run)
    task: Any = loaded.task
    if not hasattr(task, "making"):
        raise RecipeError(
            f"{run} learned {task.name}, which makes no pictures of texts. Use `adaptome predict`."
        )
    known = {one.name: one for one in getattr(task, "annotators", [])}
    return loaded.model, task.making("", task.options.seed), known


def _conditions(
    told: list[str], ready: bool, words: str | None, model: Any, known: dict[str, Any], size: tuple[int, int]
) -> list[tuple[Any, str]]:
    """The conditions of all pictures, brought to their size (width, height), with the words that name them."""
    import numpy as np

    from adaptome.core.errors import RecipeError
    from adaptome.data.conditions import get_condition
    from adaptome.data.pictures import fitted
    from adaptome.tasks.image_classification import to_rgb

    if model.control is None:
        raise RecipeError("--condition: the model has no ControlNet. Train one with the task controlled-generation, or leave it out.")  # fmt: skip
    made = []
    for one in told:
        kind, colon, file = one.partition(":")
        if not colon or not file:
            raise typer.BadParameter(
                f"{one!r} is not KIND:FILE, as canny:photo.jpg.", param_hint="--condition"
            )
        annotator = known.get(kind) or get_condition(kind, "--condition")
        picture, _ = fitted(to_rgb(Path(file)), size, "centre", np.random.default_rng(0))
        made.append((picture if ready else annotator(picture), words or annotator.instruction))
    return made


def _with(how: Any, given: dict[str, Any], text: str, seed: int) -> Any:
    from dataclasses import replace

    return replace(how, text=text, seed=seed, **given)


def _pair(text: str, option: str) -> tuple[int, int]:
    """Two numbers of a text such as 3x2."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.strip().lower())
    if found is None:
        raise typer.BadParameter(
            f"{text!r} is not two whole numbers with an x between, as 3x3.", param_hint=option
        )
    return int(found[1]), int(found[2])


def _bar(asked: list[Any], batch_size: int, begun: bool) -> Any:
    """A bar over the sampler's steps on standard error, where that is a terminal; within it a function that advances it."""
    import sys
    from contextlib import contextmanager

    from tqdm.auto import tqdm

    from adaptome.tasks.image_generation import groups

    @contextmanager
    def open_bar() -> Any:
        total = sum(
            max(round(group[0].strength * group[0].steps), 1) if begun else group[0].steps
            for group in groups(asked, batch_size)
        )
        with tqdm(total=total, unit="step", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
            yield bar.update

    return open_bar()


def _stem(text: str) -> str:
    return re.sub(r"[^\w]+", "-", text)[:50].strip("-").lower() or "picture"


def _free(folder: Path, stem: str, taken: set[str]) -> Path:
    """A name that no picture of this call has, nor one of another; an earlier picture of the same settings is replaced."""
    path, number = folder / f"{stem}.png", 2
    while str(path) in taken:
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path
