"""Another adapter for every row: equal to running each alone, for every method on every place, or refused with the reason."""

from __future__ import annotations

import pytest
import torch

import adaptome as ad
from adaptome.core.errors import HostError

from .covering import cases_of, each
from .sites import SITES, example, fresh, move, small
from .test_grid import CASES

#: what a method changes is not of single rows there: the reason that the error gives
REFUSED = {
    "experts": "do not know|does not know|read by a module",
    "parameter": "read by a module's own forward",
    "backbone": "whole backbone",
    "encoder": "whole backbone",
    "vit": "whole backbone",
}
#: on these places no method may be refused
ROWWISE = [site for site in SITES if site not in REFUSED]
ORDERS = (("a", None, "b", "a"), ("a", "a", "b", "b"), (None, "b", "a", "b"))


def batch(site: str) -> torch.Tensor:
    """Four samples."""
    x = example(site, torch.float64)
    x = torch.cat([x.roll(k, -1) for k in range(4)])[:4] if len(x) < 4 else x[:4]
    return x + 0.1 * torch.randn(x.shape, dtype=x.dtype) if x.is_floating_point() else x


@cases_of("method site", [*CASES, ("score-adapter", "predictor")], each)
def test_every_row_has_what_its_adapter_gives_alone(method, site):
    x, model = batch(site), fresh(site, torch.float64)
    for name, seed in (("a", 3), ("b", 4)):
        ad.attach(model, small(method), name, targets=SITES[site].targets, seed=seed)
        move(model, name, seed)
    facts = small(method).example_facts()[0]
    with torch.no_grad(), ad.steer(**facts):
        alone = {}
        for name in ("a", "b", None):
            ad.activate(model, [name] if name else [])
            alone[name] = model(x)
        ad.activate(model, ["b"])  # what runs elsewhere does not run on the rows
        if site in REFUSED:
            refused = pytest.raises(HostError, match=REFUSED[site])
        for order in ORDERS:
            if site in REFUSED and _refuses(model):
                with refused, ad.per_row(model, order):
                    pass
                return
            with ad.per_row(model, order):
                made = model(x)
            expected = torch.stack([alone[name][i] for i, name in enumerate(order)])
            torch.testing.assert_close(made, expected, rtol=0, atol=1e-10)


def _refuses(model: torch.nn.Module) -> bool:
    return any(a.row_refusal() for a in ad.adapters(model)["a"].adapters.values())


def test_methods_that_work_on_rows_are_named():
    """So that a method which begins to be refused is seen."""
    works = {m for m, s in CASES if s in ROWWISE}
    never = {m for m, _ in CASES} - works
    assert never <= {"lst", "p-tuning", "prompt-tuning", "multitask-prompt", "pyra"}
