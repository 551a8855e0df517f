"""Every error adaptome raises, in one tree.

    AdaptomeError
      TargetError          a target list that does not fit the model
      MethodError          an unknown method, or a setting it does not have or admit
      HostError            a layer that the method cannot be put on
      ModelError           a model that cannot be found or built
      StateError           a verb asked in the wrong state: name taken, nothing attached, merged already
        MergeError         a merge that does not exist or would not be exact
      GradientError        adapters that no gradient reached
      CheckpointError      an adapter folder that cannot be used
        TornFileError      bytes missing or changed
        FormatError        a newer format, or a file that is not an adapter's
        BaseMismatchError  saved from another base model
        KeyMismatchError   missing, unexpected or misshapen tensors
        NonFiniteError     NaN or infinity among the tensors
      DataError            input data that cannot be read; names the file and the line
      RecipeError          a recipe that is not valid; names the key and the nearest one
      TrainingError        a run that had to stop (NaN loss, ...); names the step and the last good checkpoint
      BlackBoxError        a model behind an interface does not answer, or may not be asked any more
      MissingExtraError    an optional library is not installed; names the extra

A message says what was wrong, what was found, the nearest valid choice and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AdaptomeError(Exception):
    """Base of every error raised by adaptome."""


class TargetError(AdaptomeError, ValueError):
    """A target entry matches nothing, or the targets do not fit the model."""


class MethodError(AdaptomeError, ValueError):
    """Unknown method, unknown setting, or a value a setting does not admit."""


class HostError(AdaptomeError, TypeError):
    """The method cannot be put on this kind of layer."""


class ModelError(AdaptomeError, ValueError):
    """A model that cannot be found or built."""


class StateError(AdaptomeError, RuntimeError):
    """A verb was asked of a model in the wrong state."""


class MergeError(StateError):
    """The adapter has no merged form here, or merging would change the outputs."""


class GradientError(AdaptomeError, RuntimeError):
    """No gradient reached some adapters."""


class CheckpointError(AdaptomeError, RuntimeError):
    """An adapter folder cannot be used."""


class TornFileError(CheckpointError):
    """The stored bytes are incomplete or changed."""


class FormatError(CheckpointError):
    """Written in a newer format, or not an adapter's file at all."""


class BaseMismatchError(CheckpointError):
    """The adapter was saved from another base model."""


class KeyMismatchError(CheckpointError):
    """Tensors are missing, unexpected or of the wrong shape."""


class NonFiniteError(CheckpointError):
    """The file holds NaN or infinity."""


class DataError(AdaptomeError, ValueError):
    """Input data cannot be read or used."""


class RecipeError(AdaptomeError, ValueError):
    """A recipe is not valid."""


class TrainingError(AdaptomeError, RuntimeError):
    """A training run had to stop."""


class BlackBoxError(AdaptomeError, RuntimeError):
    """A model behind an interface does not answer as it should, or its budget of calls is spent."""


class MissingExtraError(AdaptomeError, ImportError):
    """An optional library is not installed.

    Args:
        library: what could not be imported.
        extra: the extra that brings it.
    """

    def __init__(self, library: str, extra: str):
        super().__init__(f"{library} is not installed.\n  Install it with: pip install 'adaptome[{extra}]'")


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known words most like `word`, best first (at most `count`)."""
    return difflib.get_close_matches(str(word), [str(k) for k in known], n=count, cutoff=0.5)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean x?' when something is near, else an empty string."""
    close = nearest(word, known, 1)
    return f" Did you mean {close[0]!r}?" if close else ""
