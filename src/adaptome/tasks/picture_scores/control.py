"""How well made pictures follow their conditions: these are taken again from what was made and held against what was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adaptome.core.errors import MissingExtraError
from adaptome.data.conditions import Annotator
from adaptome.data.conditions.edges import skimage


class ControlScore:
    """ssim (greater is better) and mse of conditions taken again, each alone (`ssim@canny`) and as the mean over kinds.

    A condition that no annotator takes (`map`) is left out; with `lpips` and `clip` also lpips (less is better), and clip_i, 100 times the cosine
    of a made picture and the one that its condition was taken from. After CtrLoRA, arXiv:2410.09400.

    Args:
        lpips: score it, by torchmetrics with torchvision's AlexNet.
        clip: a model for clip_i; None for none.
    """

    def __init__(self, lpips: bool = False, clip: str | None = None):
        self.lpips, self.clip = lpips, clip

    def score(
        self, pictures: Sequence[Any], by: Sequence[tuple[str, Any, Annotator]], own: Sequence[Any]
    ) -> dict[str, float]:
        """Figures of PIL pictures, made by (text, condition, annotator), whose conditions are of the pictures `own`."""
        rows: dict[str, dict[str, list[float]]] = {}
        clip = self._clip(pictures, own)
        for number, (picture, (_, given, annotator)) in enumerate(zip(pictures, by, strict=True)):
            kept = rows.setdefault(annotator.name, {})
            for name, values in clip.items():
                kept.setdefault(name, []).append(values[number])
            if not annotator.annotates:
                continue
            again = annotator(picture.convert("RGB"))
            for name, value in self._likeness(np.asarray(given), np.asarray(again)).items():
                kept.setdefault(name, []).append(value)
        found: dict[str, float] = {}
        for figure in ("ssim", "mse", "lpips", "clip_i"):
            means = {kind: float(np.mean(kept[figure])) for kind, kept in rows.items() if figure in kept}
            if means:
                found[figure] = float(np.mean(list(means.values())))
                found |= {f"{figure}@{kind}": mean for kind, mean in means.items()}
        return found

    def _likeness(self, given: np.ndarray, again: np.ndarray) -> dict[str, float]:
        metrics = skimage("metrics")
        window = min(7, (min(given.shape[:2]) - 1) | 1)
        ssim = metrics.structural_similarity(given, again, channel_axis=-1, win_size=window, data_range=255)
        found = {"ssim": float(ssim), "mse": float(((given / 255.0 - again / 255.0) ** 2).mean())}
        return {**found, "lpips": _lpips(given, again)} if self.lpips else found

    def _clip(self, pictures: Sequence[Any], own: Sequence[Any]) -> dict[str, list[float]]:
        if self.clip is None:
            return {}
        from transformers import AutoModel, AutoProcessor

        from adaptome.tasks.picture_scores.embeddings import embedded, loaded

        model, processor = loaded(self.clip, AutoModel), loaded(self.clip, AutoProcessor)
        a, b = (embedded(model.get_image_features, processor, some) for some in (pictures, own))
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        return {"clip_i": [100 * float(v) for v in (a * b).sum(1)]}


def _lpips(given: np.ndarray, again: np.ndarray) -> float:
    import torch

    try:
        from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity
    except ImportError:
        raise MissingExtraError("torchmetrics with torchvision", "text") from None
    made, held = (
        torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None] / 127.5 - 1 for x in (given, again)
    )
    try:
        return float(learned_perceptual_image_patch_similarity(made, held, net_type="alex"))
    except ModuleNotFoundError:
        raise MissingExtraError("torchvision (task.lpips=true)", "text") from None
