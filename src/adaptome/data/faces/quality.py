r"""How good a picture of a face is: measures that need nothing else, a table of scores, and CNN-IQA by its weights.

sharpness     log10 of the mean square of the Laplacian of the grey picture in [0, 1] at a fixed side: low where it is blurred
resolution    the shorter side in pixels
scores        of a file: `file,score` lines, from whatever judges pictures
cnn-iqa       m = [max, min](conv_7x7(x) [50, 26, 26]),  q = W_3 relu(W_2 relu(W_1 m)):  the mean over patches x of 32 x 32 pixels in [0, 1],
              each grey value less its neighbourhood's mean, over the neighbourhood's spread; 724,901 numbers. Kang et al. 2014
              Weights of three channels, as IQA-PyTorch's that PETALface takes, judge the whole picture x in its colours; 729,801 numbers
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import DataError, did_you_mean
from adaptome.data.textfile import lines_of

#: side of the picture that sharpness is measured on
SIDE = 112
PATCH = 32


def grey(picture: Any) -> np.ndarray:
    """Shares of white [height, width] of a PIL picture."""
    return np.asarray(picture.convert("L"), dtype=np.float64) / 255.0


def sharpness(picture: Any, side: int = SIDE) -> float:
    """See above; of a PIL picture."""
    from PIL import Image

    x = grey(picture.convert("L").resize((side, side), Image.Resampling.BICUBIC))
    x = (x[:-1, :-1] + x[1:, :-1] + x[:-1, 1:] + x[1:, 1:]) / 4  # less of the sensor's noise
    laplacian = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
    return float(np.log10(np.square(laplacian).mean() + 1e-8))


def resolution(picture: Any) -> float:
    """Pixels of a PIL picture's shorter side."""
    return float(min(picture.size))


class Scores:
    """Scores of pictures by a file: a name and a number on each line; the first line may be a header.

    Raises:
        DataError: a line that is not so.
    """

    def __init__(self, path: Path):
        self.path, self._of = path, dict[str, float]()
        for number, line in enumerate(lines_of(path), 1):
            if not line.strip():
                continue
            # a name may have blanks in it
            marked = re.search("[,;\t]", line.strip())
            words = re.split(r"[,;\t]+", line.strip()) if marked else line.strip().rsplit(None, 1)
            try:
                name, score = words[0].strip(), float(words[1])
            except (IndexError, ValueError) as error:
                if number == 1:
                    continue
                raise DataError(
                    f"{path}, line {number}: {line.strip()[:60]!r}; expected a file's name and its score."
                ) from error
            near = path.parent / name
            self._of[str((near if near.exists() else Path(name)).resolve())] = score

    def of(self, file: str | Path) -> float:
        """The score of a file.

        Raises:
            DataError: there is none.
        """
        found = self._of.get(str(Path(file).resolve()))
        if found is None:
            close = did_you_mean(Path(file).name, [Path(name).name for name in self._of])
            raise DataError(f"{file}: {self.path} has no score of it.{close} It has {len(self._of)} scores.")
        return found


class CNNIQA(nn.Module):
    """A network that judges pictures without a reference; higher is better. See above."""

    def __init__(self, filters: int = 50, width: int = 800, channels: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 7)
        self.fc1, self.fc2, self.fc3 = (
            nn.Linear(2 * filters, width),
            nn.Linear(width, width),
            nn.Linear(width, 1),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores [batch] of pictures [batch, 3, height, width] in [0, 1], sides of 32 at least.

        Raises:
            DataError: values outside [0, 1], as pixels for a model are.
        """
        low, high = float(pictures.min()), float(pictures.max())
        if low < 0 or high > 1:
            raise DataError(
                f"CNN-IQA takes pictures in [0, 1]; these reach from {low:.3g} to {high:.3g}. Undo what was done to them for a model."
            )
        maps = self.conv1(pictures if self.conv1.in_channels == 3 else grey_patches(pictures)).flatten(2)
        m = torch.cat([maps.amax(-1), maps.amin(-1)], 1)
        q = self.fc3(F.relu(self.fc2(F.relu(self.fc1(m)))))
        return q.view(len(pictures), -1).mean(1)

    @classmethod
    def from_file(cls, path: Path) -> CNNIQA:
        """With the weights of a safetensors file, of the names conv1, fc1, fc2 and fc3.

        Raises:
            DataError: it is none, or its tensors are not these.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
            (filters, channels), width = tensors["conv1.weight"].shape[:2], tensors["fc1.weight"].shape[0]
            made = cls(filters, width, 3 if channels == 3 else 1)
            made.load_state_dict(tensors)
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise DataError(
                f"{path} does not hold CNN-IQA's weights (conv1, fc1, fc2, fc3): {error}"
            ) from error
        return made.eval()

    @torch.inference_mode()
    def of(self, picture: Any) -> float:
        """The score of a PIL picture."""
        wide, high = picture.size
        if min(wide, high) < PATCH:
            scale = PATCH / min(wide, high)
            picture = picture.resize((max(PATCH, round(wide * scale)), max(PATCH, round(high * scale))))
        x = torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0)
        return float(self(x.permute(2, 0, 1)[None])[0])


def grey_patches(pictures: Tensor) -> Tensor:
    """The normalised grey patches [batch n, 1, 32, 32] of pictures [batch, 3, height, width]."""
    weights = pictures.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x = normalised((pictures * weights).sum(1, keepdim=True))
    return F.unfold(x, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 1, PATCH, PATCH)


def normalised(x: Tensor, reach: int = 3, floor: float = 1.0 / 255) -> Tensor:
    """Each value less its neighbourhood's mean, over the neighbourhood's spread plus a grey level [batch, 1, height, width]."""
    size = 2 * reach + 1
    wide = F.pad(x, (reach,) * 4, mode="replicate")
    mean = F.avg_pool2d(wide, size, 1)
    spread = (F.avg_pool2d(wide**2, size, 1) - mean**2).clamp(min=0).sqrt()
    return (x - mean) / (spread + floor)


def scale_of(scores: Sequence[float], spread: bool) -> tuple[float, float]:
    """Factor and shift that bring training pictures' scores to a mean of 1/2; with `spread`, their 5th and 95th percentiles one apart.

    Raises:
        DataError: there are no scores, or one is no number.
    """
    values = np.asarray(scores, float)
    if not len(values) or not np.isfinite(values).all():
        raise DataError("the scores of the training pictures' quality are not all numbers.")
    low, high = np.percentile(values, [5, 95])
    factor = 1.0 / (high - low) if spread and high > low else 1.0
    return float(factor), float(0.5 - factor * values.mean())
