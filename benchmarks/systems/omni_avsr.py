"""The recipe `omni-avsr-demo` in full: drawn speech written down by sound, by lips or by both, at two rates of each, with one model.

    python benchmarks/systems/omni_avsr.py [--seeds 3]

The share of words that are right (1 - word error rate), the mean over the eight ways to recognise a clip, on sentences that training did not have. Beside the
recipe stand the frozen recogniser, whose projectors alone train with the same data and steps; the same recipe with one rate of each stream, told at the coarser
rates by the projectors of the finer ones (`coarse`, the mean of those that it did not learn); and guessing, which says the likeliest word of each place. `noise`
are sounds in a babble as loud as the speech, heard alone and with the lips. Exit code 1 unless the recipe is ahead of the frozen recogniser and of guessing by
the margins below, ahead of the one-rate model at the coarser rates, and better in noise with lips, at their finer rate, than without, in every seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _demo import Demo, Seen, main

from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks.speech_scores import error_rates
from adaptome.training import load_run, run
from adaptome.training.building import prepared

DEMO, FROZEN, ONE, GUESS = "omni-avsr-demo", "frozen recogniser", "one rate", "guessing"
RATES = "stages.1.model={audio_rates: [4], video_rates: [2]}"
WAYS = {DEMO: [], FROZEN: ["stages.1.methods=[{name: linear-probe}]"], ONE: [RATES]}
COARSE = ("audio-8", "video-4", "audiovisual-8-4")


def measure(seed: int, folder: Path) -> dict[str, float]:
    told = [f"data.split_seed={seed}", f"stages.1.data.split_seed={seed}", f"training.seed={seed}"]
    shared = [*told, "training.device=cpu", f"output={folder}/demo"]
    found: dict[str, float] = {}
    for number, (label, changes) in enumerate(WAYS.items()):
        (_, first), (_, second) = stages_of(load_recipe(DEMO, [*shared, *changes]))
        if number == 0:
            run(first, callbacks=[])
        out = folder / str(number)
        second = second.model_copy(update={"output": second.output.model_copy(update={"folder": str(out)})})
        metrics = run(second, callbacks=[]).metrics
        splits = prepared(second)[2]
        if label == ONE:
            metrics = at_coarser(out, splits["test"])
        found |= {label: 1 - metrics["wer"]} | told_of(metrics, label)
        if number == 0:
            found[GUESS] = guessed(splits)
    return found


def at_coarser(out: Path, split: Any) -> dict[str, float]:
    """What the model of one rate scores at all of them, its projectors taken for those of the coarser rates too."""
    loaded: Any = load_run(out)
    for stream, rates in (("audio", [4, 8]), ("video", [2, 4])):
        own = loaded.model.projectors[stream]
        own[str(rates[1])] = own[str(rates[0])]
        setattr(loaded.model.settings, f"{stream}_rates", rates)
    task = loaded.task
    return task.judge(split, task.predict(loaded.model, loaded.processor, task.inputs(split.rows)))


def told_of(metrics: Mapping[str, float], label: str) -> dict[str, float]:
    """The parts: each way without noise, the coarse ones, and noise with and without lips."""
    right = {name.partition("@")[2]: 1 - value for name, value in metrics.items() if name.startswith("wer@")}
    made = {f"coarse: {label}": sum(right[one] for one in COARSE) / len(COARSE)}
    if label == DEMO:
        made |= {f"{name}: {label}": value for name, value in right.items()}
    return made


def guessed(splits: Any) -> float:
    """The words that are right when the likeliest of each place is always said."""
    known = [text.split() for text in splits["train"].rows["text"]]
    best = " ".join(Counter(place).most_common(1)[0][0] for place in zip(*known, strict=True))
    truths = list(splits["test"].rows["text"])
    return 1 - error_rates(truths, [best] * len(truths))["wer"]


def also(seen: Sequence[Seen]) -> dict[str, bool]:
    """What both senses and several rates give."""
    return {
        "lips at their finer rate help in noise, in every seed": all(one[f"audiovisual-{a}-2/0dB: {DEMO}"] > one[f"audio-{a}/0dB: {DEMO}"] for one in seen for a in (4, 8)),
        "ahead of the one-rate model at rates that it did not learn, in every seed": all(one[f"coarse: {DEMO}"] > one[f"coarse: {ONE}"] for one in seen),
    }  # fmt: skip


if __name__ == "__main__":
    demo = Demo(DEMO, "words right", FROZEN, GUESS, {FROZEN: 0.1, GUESS: 0.2}, measure, also)
    main(demo, "python benchmarks/systems/omni_avsr.py", __doc__)
