"""`adaptome embed`: vectors of pictures and texts by a finished run, and search among them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json
from adaptome.core.errors import DataError, RecipeError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = """Examples:

adaptome embed runs/photos pictures/ --search "a dog in the snow"

adaptome embed runs/photos pictures/ --output vectors.parquet

adaptome embed runs/photos vectors.npz --search "a dog in the snow" --top 20

adaptome embed runs/photos texts.txt --search photo.jpg
"""
ENDINGS = (".npz", ".parquet")


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("embed", epilog=EXAMPLES)(embed)


def embed(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The output folder of a finished run.", show_default=False)
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Pictures, folders of them, .txt files of a text a line, texts, or a file of vectors that this command wrote.",
        ),
    ],
    search: Annotated[
        str | None, typer.Option(help="Words, or a picture: what of the inputs is nearest to it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write names and vectors here: .npz or .parquet.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the nearest are shown.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs run together.")] = 32,
    json: JsonOption = False,
) -> None:
    """Vectors of pictures and texts, to keep or to search."""
    import numpy as np

    if output is not None and output.suffix not in ENDINGS:
        near = did_you_mean(output.suffix, ENDINGS)
        raise typer.BadParameter(
            f"{output}: vectors are written as .npz or .parquet.{near}", param_hint="--output"
        )
    from adaptome.training import load_run

    loaded = load_run(run)
    if not hasattr(loaded.task, "embed"):
        raise RecipeError(
            f"{run}: a run of {loaded.task.name} gives no vectors. One of image-text-retrieval does, e.g. adaptome train vladva-demo."
        )

    def vectors(given: list[str]) -> np.ndarray:
        found: np.ndarray = loaded.task.embed(loaded.model, loaded.processor, given, batch_size)
        return found

    names, kept = _gathered(inputs)
    new = [name for name in names if name not in kept]
    made = dict(zip(new, vectors(new), strict=True)) if new else {}
    every = [made[name] if name in made else kept[name] for name in names]
    widths = sorted({len(one) for one in every})
    if len(widths) > 1:
        raise DataError(f"the vectors have {widths[0]} and {widths[1]} numbers: they are of different runs. Embed their inputs by one.")  # fmt: skip
    found = np.stack(every)
    asked = None if search is None else vectors([search])[0]
    if asked is not None and asked.shape[0] != found.shape[1]:
        raise DataError(f"the vectors have {found.shape[1]} numbers and those of {run} {asked.shape[0]}: another run made them.")  # fmt: skip
    if output is not None:
        _write(output, names, found)
    if asked is not None:
        _tell(names, found @ asked, top, json)
    elif output is None:
        print_json([{"input": name, "vector": row.tolist()} for name, row in zip(names, found, strict=True)])
    elif not json:
        print(f"{len(names)} vectors of {found.shape[1]} numbers in {output}")


def _gathered(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """What is to be embedded, by name, and the vectors that files bring."""
    from adaptome.data.readers.images import ENDINGS as PICTURES
    from adaptome.data.textfile import read_text
    from adaptome.tasks.showing import path_of

    names: list[str] = []
    kept: dict[str, Any] = {}
    for word in words:
        path = path_of(word) if word else None
        if path is None:
            names.append(word)
        elif path.suffix in ENDINGS:
            read = _read(path)
            kept |= read
            names += list(read)
        elif path.is_dir():
            inside = sorted(str(f) for f in path.rglob("*") if f.suffix.lower() in PICTURES)
            if not inside:
                raise DataError(
                    f"the folder {word} holds no picture. Endings read: {', '.join(sorted(PICTURES))}."
                )
            names += inside
        elif path.suffix == ".txt" and path.is_file():
            names += [line.strip() for line in read_text(path).splitlines() if line.strip()]
        elif path.suffix.lower() in PICTURES and not path.is_file():
            raise DataError(f"no such picture: {word}.")
        else:
            names.append(word)
    if not names:
        raise DataError("nothing to embed: the inputs hold neither pictures nor texts.")
    return list(dict.fromkeys(names)), kept


def _read(path: Path) -> dict[str, Any]:
    """Name -> vector of a file that `_write` wrote."""
    from zipfile import BadZipFile

    import numpy as np

    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                names, vectors = [str(name) for name in held["names"]], held["vectors"]
        else:
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            names, vectors = table["name"].to_pylist(), np.asarray(table["vector"].to_pylist(), np.float32)
        return dict(zip(names, vectors, strict=True))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} holds no vectors of adaptome embed: {error}.") from error


def _write(path: Path, names: list[str], vectors: np.ndarray) -> None:
    """Names and vectors, whole or not at all."""
    from io import BytesIO

    import numpy as np

    from adaptome.core.files import write_atomic

    held = BytesIO()
    if path.suffix == ".npz":
        np.savez(held, names=np.array(names), vectors=vectors)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        pq.write_table(pa.table({"name": names, "vector": column}), held)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, held.getvalue())


def _tell(names: list[str], scores: np.ndarray, top: int, json: bool) -> None:
    """The nearest, a line each: similarity and name."""
    best = [int(i) for i in (-scores).argsort(kind="stable")[:top]]
    if json:
        print_json([{"input": names[i], "similarity": round(float(scores[i]), 6)} for i in best])
        return
    for i in best:
        print(f"{scores[i]:.3f}\t{names[i]}")
