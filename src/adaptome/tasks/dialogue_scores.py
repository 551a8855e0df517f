"""Scores of written answers: their form, the facts they must state, and their likeness to references, each answer by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from adaptome.core.errors import MissingExtraError

#: an answer that says it does not know, or sends elsewhere
ABSTAINS = re.compile(
    r"\b(?:i (?:do not|don['’]t) know|i(?:['’]m| am) not (?:sure|certain)|i (?:cannot|can['’]t) (?:say|answer|help|confirm|verify)|no reliable information)\b",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^#{2,6} \S", re.MULTILINE)
_LIST = re.compile(r"^\s*(?:[-*+]|\d+[.)]) \S", re.MULTILINE)
_STEPS = re.compile(r"^#{1,6} .*action steps", re.IGNORECASE | re.MULTILINE)
#: of the bootstrap
RESAMPLES = 1000


def states(answer: str, fact: str) -> bool:
    """Whether the answer has the fact's words, however written large or spaced; `a|b` is either."""
    text = _words(answer)
    return any(re.search(rf"(?<!\w){re.escape(_words(one))}(?!\w)", text) for one in fact.split("|"))


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def of_form(answers: Sequence[str]) -> dict[str, np.ndarray]:
    """0 or 1 for every answer: markdown headings, a list, a heading 'Action Steps', all three (markdown), and not knowing (abstains)."""
    found = {name: np.array([bool(pattern.search(one)) for one in answers], dtype=float) for name, pattern in (("headings", _HEADING), ("lists", _LIST), ("action_steps", _STEPS), ("abstains", ABSTAINS))}  # fmt: skip
    return found | {"markdown": found["headings"] * found["lists"] * found["action_steps"]}


def of_facts(answers: Sequence[str], facts: Sequence[Sequence[str]], wrong: Sequence[Sequence[str]] | None) -> dict[str, np.ndarray]:  # fmt: skip
    """For every answer with facts: the share stated (domain_accuracy), and whether something wrong is (contradicts) and all is right (all_right).

    Args:
        facts, wrong: what each answer must state, and what it must not.
    """
    kept = [i for i, one in enumerate(facts) if one]
    share = np.array([np.mean([states(answers[i], fact) for fact in facts[i]]) for i in kept])
    if wrong is None:
        return {"domain_accuracy": share, "all_right": (share == 1).astype(float)}
    against = np.array([any(states(answers[i], one) for one in wrong[i] or ()) for i in kept], dtype=float)
    return {"domain_accuracy": share, "contradicts": against, "all_right": (share == 1) * (1 - against)}


def require_likeness() -> None:
    """Raise MissingExtraError where torchmetrics, which scores likeness, is not installed."""
    import importlib.util

    if importlib.util.find_spec("torchmetrics") is None:
        raise MissingExtraError("torchmetrics", "text")


def of_likeness(answers: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """ROUGE-L F1 of every answer.

    Raises:
        MissingExtraError: torchmetrics is not installed.
    """
    require_likeness()
    from torchmetrics.functional.text import rouge_score

    pairs = zip(answers, references, strict=True)
    found = [float(rouge_score([a], [r], rouge_keys=("rougeL",))["rougeL_fmeasure"]) for a, r in pairs]
    return {"rouge_l": np.array(found)}


def bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """SacreBLEU of the whole, 0 to 1."""
    from torchmetrics.functional.text import sacre_bleu_score

    return float(sacre_bleu_score(list(answers), [[one] for one in references]))


def gains(now: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray], seed: int = 42) -> dict[str, float]:  # fmt: skip
    """How far answers differ from those before, item by item: the mean of each score, and its 95 % bootstrap interval (_low, _high)."""
    from scipy.stats import bootstrap

    told: dict[str, float] = {}
    for name, values in now.items():
        difference = values - before[name]
        if len(difference) < 2:
            continue
        low = high = float(difference.mean())
        if difference.std() > 0:  # else every resample is the same
            made = bootstrap((difference,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed))  # fmt: skip
            low, high = map(float, made.confidence_interval)
        told |= {f"{name}_gain": float(difference.mean()), f"{name}_gain_low": low, f"{name}_gain_high": high}  # fmt: skip
    return told
