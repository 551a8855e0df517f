"""Word and character error rates of what was recognised, by what it was recognised from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from adaptome.core.errors import MissingExtraError
from adaptome.models.speech_recogniser import Asked


class Condition(NamedTuple):
    """What is asked of a clip, and how loud the noise on its sound is in dB below the speech; None for none."""

    asked: Asked
    snr: float | None = None

    @property
    def label(self) -> str:
        """Such as audio-4, and audio-4/0dB in noise."""
        return self.asked.label if self.snr is None else f"{self.asked.label}/{self.snr:g}dB"


def normal(text: str) -> str:
    """Lower case, single spaces."""
    return " ".join(text.lower().split())


def error_rates(truths: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """wer and cer over all texts together: edits of the whole, over its words or characters.

    Raises:
        MissingExtraError: jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError:
        raise MissingExtraError("jiwer", "speech") from None
    pairs = [normal(one) for one in truths], [normal(one) for one in found]
    return {"wer": float(jiwer.wer(*pairs)), "cer": float(jiwer.cer(*pairs))}
