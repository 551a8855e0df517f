"""PEFT's own tests run on `adaptome.peft`: how many pass, and why the others do not.

    git clone --branch v0.21.2 https://github.com/huggingface/peft
    python benchmarks/peft_suite.py peft [--files tests/test_custom_models.py] [--every 10] [--json]

Needs the installed `peft`, `parameterized` where the tests ask for it, and a checkout of the same version. `peft`'s names are replaced by those of `adaptome.peft` before a
test is imported; what it has no name for stays PEFT's, so that a test of such a type fails at `get_peft_model`, and is counted under `types that are not here`. Nothing is
fetched: tests that need the hub are told apart. `--every 10` runs each tenth case.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FILES = "tests/test_custom_models.py"
#: (what an error says, why the case does not pass), the first that fits
REASONS = (
    (r"none of the configurations here", "types that are not here"),
    (r"is not here|are not here|biases are not trained|is none of PEFT's", "settings that are refused"),
    (
        r"LocalEntryNotFound|OfflineMode|ConnectError|huggingface\.co|hub_online|couldn't connect",
        "needs the hub",
    ),
)


class Plugin:
    """pytest's: puts our names in PEFT's place, leaves cases out, and writes down how each ended."""

    def __init__(self) -> None:
        self.every, self.ended = int(os.environ["PEFT_SUITE_EVERY"]), Path(os.environ["PEFT_SUITE_OUT"])
        self.seen: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = items[:: self.every]

    def pytest_runtest_logreport(self, report: Any) -> None:
        said = str(report.longrepr or "") if report.failed or report.skipped else ""
        if report.when == "call" or not report.passed:
            self.seen[report.nodeid] = (report.outcome, said[-2000:])

    def pytest_sessionfinish(self) -> None:
        self.ended.write_text(json.dumps(self.seen))


def ours_in_its_place() -> None:
    """Let `peft` have the names of `adaptome.peft`."""
    import peft

    import adaptome.peft as ours

    for name in [n for n in ours.__all__ if n != "PeftType"]:  # the tests name types that are not here
        for module in [m for key, m in list(sys.modules.items()) if key.split(".")[0] == "peft"]:
            if getattr(module, name, None) is getattr(peft, name, object()) and module is not peft:
                setattr(module, name, getattr(ours, name))
        setattr(peft, name, getattr(ours, name))


def inside(arguments: list[str]) -> int:
    """Run pytest in this process, which is one of our own."""
    import pytest

    ours_in_its_place()
    return pytest.main(
        ["-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", *arguments], plugins=[Plugin()]
    )


def reason(said: str) -> str:
    """Why a case does not pass, by what its error says."""
    for pattern, why in REASONS:
        if re.search(pattern, said):
            return why
    last = said.strip().splitlines()[-1] if said.strip() else "?"
    return re.sub(r"^.*?: (?=[A-Z]\w*(Error|Exception|Warning))", "", last)[:100]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="of huggingface/peft")
    parser.add_argument("--files", nargs="+", default=[FILES], help=f"of the checkout [{FILES}]")
    parser.add_argument("--every", type=int, default=1, help="run each n-th case [1]")
    parser.add_argument("--json", action="store_true", help="print JSON, with every case")
    args, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "ended.json"
        environment = os.environ | {
            "PEFT_SUITE_EVERY": str(args.every), "PEFT_SUITE_OUT": str(out), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        command = [sys.executable, str(Path(__file__).resolve()), "--inside", *args.files, *more]
        subprocess.run(command, cwd=args.checkout, env=environment, check=False, stdout=sys.stderr)
        ended = json.loads(out.read_text())
    outcomes = collections.Counter(outcome for outcome, _ in ended.values())
    why = collections.Counter(reason(said) for outcome, said in ended.values() if outcome == "failed")
    if args.json:
        print(json.dumps({"outcomes": outcomes, "why": why, "cases": ended}))
        return
    print(", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common()))
    for text, n in why.most_common():
        print(f"{n:6}  {text}")


if __name__ == "__main__":
    sys.exit(inside(sys.argv[2:]) if sys.argv[1:2] == ["--inside"] else main())
