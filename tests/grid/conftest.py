"""Methods that are steered run with an example of their facts."""

import pytest

import adaptome as ad

from .sites import small


@pytest.fixture(autouse=True)
def steered(request):
    """Tell the first example facts of every method that a test is about."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    made = small if request.module.__name__.endswith("test_grid") else ad.get_method
    facts = {}
    for key in ("method", "inner", "outer"):
        if key in parameters:
            facts |= made(parameters[key]).example_facts()[0]
    with ad.steer(**facts):
        yield
