"""What a language model learns of worked answers is their structure more than their content.

claim      Li et al. 2025, arXiv:2502.07374: trained on traces with wrong answers, corrupted digits or keywords taken out, a model keeps most of what
           whole traces give it; on traces whose steps are shuffled, deleted or replaced by others' it loses much, the more steps the more
miniature  the study `adaptome perturb long-cot-demo`: a Llama of 64 x 2 that knows sums and answers at once is trained by LoRA on 800 traces of chains of
           five to seven sums, each row on traces that are spoiled in one way, and answers 200 held-out questions greedily. Seeds draw the
           adapter, the order of the data and what is spoiled; base and questions are the same. All digits replaced is told apart, as in the paper
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile

from adaptome.compare.perturbation import Study, perturbation_study
from adaptome.recipe import load_recipe

#: the rows that are judged: of the paper's shares the high ones, and the corrupted digits that leave most of their digits' chance
KINDS = ("wrong", "digits:0.5", "digits:1", "keywords:1", "shuffle:0.33", "shuffle:0.67", "shuffle:1", "delete:0.67", "delete:1", "insert:0.67", "insert:1")  # fmt: skip
KEEPS, LOSES = ("digits 50%", "keywords 100%"), ("shuffle 67%", "delete 67%", "insert 67%")


def judge(study: Study) -> dict[str, bool]:
    row = {one.label: one for one in study.rows}
    whole = study.rows[0]
    gain = whole.mean - study.base
    told = {"whole traces beat the base by 0.3": gain >= 0.3}
    for name in KEEPS:
        told[f"{name} keeps three quarters of the gain"] = row[name].lost <= 0.25 * gain
    told["wrong answers keep half of the gain"] = row["wrong 100%"].lost <= 0.5 * gain
    for name in LOSES:
        told[f"{name} loses more than any edit of content but all digits"] = row[name].lost > max(
            row[other].lost for other in (*KEEPS, "wrong 100%")
        )
    told["all digits replaced loses nine tenths"] = row["digits 100%"].lost >= 0.9 * gain
    told["the more steps are shuffled, the more is lost"] = (
        row["shuffle 33%"].lost <= row["shuffle 67%"].lost <= row["shuffle 100%"].lost
    )
    return told


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", help="keep the runs there, and go on with those that are finished")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        recipe = load_recipe(
            "long-cot-demo", [f"output={given.folder or temporary}/study", "training.device=cpu"]
        )
        study = perturbation_study(
            recipe, KINDS, given.seeds, callbacks=[], tell=lambda line: print(line, file=sys.stderr)
        )
    verdict = judge(study)
    if given.json:
        print(json.dumps({**study.to_dict(), "parts": verdict, "holds": all(verdict.values())}, indent=1))
        return 0 if all(verdict.values()) else 1
    print(f"{'base':18} accuracy {study.base:.3f}")
    for row in study.rows:
        half = "" if row.half is None else f" ± {row.half:.3f}"
        print(f"{row.label:18} accuracy {row.mean:.3f}{half}, lost {row.lost:+.3f}")
    for part, held in verdict.items():
        print(f"  {'yes' if held else 'no ':3}  {part}")
    print(f"claim holds: {'yes' if all(verdict.values()) else 'no'}")
    return 0 if all(verdict.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
