"""What a recogniser of faces answers: whether two are of one person, who in a gallery one is likest to, and its direction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from adaptome.core.errors import DataError
from adaptome.core.steer import steer
from adaptome.data.readers.images import ENDINGS
from adaptome.report.shown import Ranked, Shown, side_by_side
from adaptome.tasks.base import Gallery, Task
from adaptome.tasks.face_gallery import indexed
from adaptome.tasks.face_reading import FaceReader, opened
from adaptome.tasks.face_scores import unit
from adaptome.tasks.inference import chunks, evaluating, to_device
from adaptome.tasks.showing import Given, gathered, shown

logger = logging.getLogger(__name__)
#: most pixels of height that two faces are shown at
SIDE = 512


class FaceAnswers(Task):
    """`predict` and what goes with it; `learned` and the data are the task's."""

    takes = ENDINGS
    reader: FaceReader
    #: likeness above which two faces are of one person; None where none is known
    threshold: float | None
    #: what makes batches
    collator: Callable[..., Any]

    def inputs(self, rows: Any) -> list[Any]:
        """A pair for every row: by turns with the one before it and with one half the rows away."""
        return [(rows[i], rows[other]) for i, other in enumerate(_partners(len(rows)))]

    def truths(self, rows: Any) -> list[Any]:
        labels = list(rows["label"])
        return [
            "same" if labels[i] == labels[other] else "different"
            for i, other in enumerate(_partners(len(labels)))
        ]

    def given(self, words: Sequence[str]) -> list[Given]:
        """Two pictures, and so on by twos."""
        for word in words:
            if not Path(word).is_file():
                kind = (
                    "is a folder; to rank its pictures, --gallery" if Path(word).is_dir() else "no such file:"
                )
                raise DataError(f"{kind} {word}. This run compares pictures by twos: a.png b.png.")
        if len(words) % 2:
            raise DataError(
                f"{words[-1]} has no counterpart: give pictures by twos, or one with --gallery FOLDER."
            )
        return [Given(f"{a} {b}", (a, b)) for a, b in zip(words[::2], words[1::2], strict=True)]

    def predict(
        self, model: nn.Module, processor: Any, inputs: Sequence[Any], batch_size: int = 32
    ) -> list[Any]:
        """How alike two faces are, or what a face is embedded to.

        Args:
            inputs: pairs (tuples or lists of two), or single faces: paths, PIL pictures, arrays, rows.

        Returns a list of {"label" (same or different), "score" (from -1 to 1), "threshold"}, without label where no threshold is known;
        of single faces {"feature" [D] of length 1, "norm", "quality"}.

        Raises:
            DataError: a picture that cannot be read, or in which no face is known or found.
        """
        flat = [face for one in inputs for face in (one if isinstance(one, tuple | list) else (one,))]
        features, quality = self.embedded(model, processor, flat, batch_size)
        directions, at, made = unit(features), 0, list[Any]()
        for one in inputs:
            if isinstance(one, tuple | list):
                made.append(self._compared(float(directions[at] @ directions[at + 1])))
                at += 2
                continue
            score = None if quality is None else round(float(quality[at]), 6)
            made.append(
                {
                    "feature": directions[at].tolist(),
                    "norm": float(np.linalg.norm(features[at])),
                    "quality": score,
                }
            )
            at += 1
        return made

    def _compared(self, likeness: float) -> dict[str, Any]:
        told: dict[str, Any] = {"score": round(likeness, 6)}
        if self.threshold is None:
            return told
        label = "same" if likeness > self.threshold else "different"
        return {"label": label, **told, "threshold": round(self.threshold, 6)}

    def embedded(
        self, model: nn.Module, processor: Any, faces: Sequence[Any], batch_size: int = 32
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Embeddings [n, D] of faces, and their qualities [n] where these are measured."""
        collate, features, quality = self.collator(processor, find=True), list[np.ndarray](), list[float]()
        with evaluating(model) as device:
            for part in chunks(list(faces), batch_size):
                batch = to_device(collate([_alone(face) for face in part]), device)
                with steer(**self.facts(batch)):
                    features.append(model(batch["pixel_values"])["embeddings"].float().cpu().numpy())
                quality += batch["quality"].tolist() if "quality" in batch else []
        return np.concatenate(features), np.array(quality) if quality else None

    def ranked(
        self, model: nn.Module, processor: Any, words: Sequence[str], gallery: Gallery, batch_size: int = 32
    ) -> tuple[list[Given], list[Any]]:
        """The gallery's people by their likeness to each picture.

        Returns the pictures, and for each {"label" (unknown where nobody passes the threshold), "score", "ranked": [{"person", "file", "score"}]}.
        """
        given, left = gathered(words, self.takes), list[str]()

        def embed(files: Sequence[str]) -> tuple[np.ndarray, list[int]]:
            made, good = list[np.ndarray](), list[int]()
            for part in chunks(list(enumerate(files)), batch_size):
                seen = []
                for number, file in part:
                    try:
                        seen.append(self.reader(file, find=True))
                        good.append(number)
                    except DataError as error:
                        left.append(str(error))
                if seen:
                    made.append(unit(self.embedded(model, processor, seen, batch_size)[0]))
            return (np.concatenate(made), good) if made else (np.zeros((0, 1)), [])

        index = indexed(gallery, embed)
        if left:
            logger.warning("%d pictures of the gallery are left out: %s", len(left), "; ".join(left[:3]))
        probes = unit(self.embedded(model, processor, [one.value for one in given], batch_size)[0])
        return given, [self._answer(index.search(probe, gallery.top)) for probe in probes]

    def _answer(self, best: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
        items = [{"person": who, "file": file, "score": round(score, 6)} for who, file, score in best]
        known = self.threshold is None or best[0][2] > self.threshold
        return {"label": best[0][0] if known else "unknown", "score": items[0]["score"], "ranked": items}

    def shown(self, one: Any, prediction: Any) -> Shown:
        pictures = [opened(face)[1] for face in (one if isinstance(one, tuple | list) else (one,))]
        if "ranked" in prediction:
            items = tuple(Ranked(i["person"], i["score"], i["file"]) for i in prediction["ranked"])
            return Shown(
                f"{prediction['label']} ({prediction['score']:.3f})",
                picture=pictures[0],
                ranked=items,
                bounded=False,
            )
        if "feature" in prediction:
            return shown(one, {"quality": prediction["quality"]}, pictures[0])
        edge = f", same above {prediction['threshold']:.3f}" if "threshold" in prediction else ""
        return Shown(
            f"{prediction.get('label', 'alike')} ({prediction['score']:.3f}{edge})",
            picture=side_by_side(pictures, SIDE),
        )


def _partners(count: int) -> list[int]:
    return [i - 1 if i % 2 else (i + count // 2) % count for i in range(count)]


def _alone(face: Any) -> Any:
    """A face as an example of no split."""
    return (
        {k: v for k, v in face.items() if k in ("image", "box", "quality")}
        if isinstance(face, Mapping) and "image" in face
        else face
    )
