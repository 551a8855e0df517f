"""Linear probe: train the head on frozen features, and nothing else."""

from __future__ import annotations

from adaptome.core.hosts import Host
from adaptome.core.method import Method, register


@register(
    "linear-probe", category="selective", subcategory="head", structure_changed=False, export="none", hosts=(), default_targets=(),
    needs="the modules that `train` names", source="Alain and Bengio 2016, arXiv:1610.01644",
)  # fmt: skip
class LinearProbe(Method):
    r"""Linear probe: train the head on frozen features, and nothing else.

        y = W f + b,    f what the frozen model makes

    when        the baseline of every comparison, or features that tell the classes apart already
    shapes      W [classes, d], b [classes]: whatever `train` names, trained whole as beside every other method
    init        as the head stands
    placement   on no layer: it takes no targets. `ad.attach(model, "linear-probe", train="classifier")`; a recipe's task names its
                head itself, so that `method: linear-probe` will do
    parameters  none but the head's: d K + K for K classes, 38,450 for AST and ESC-50
    merge       exact: the head takes the base's place
    source      Alain and Bengio 2016, arXiv:1610.01644
    """

    def admits(self, host: Host) -> str | None:
        return "it sits on no layer, and trains what `train` names"

    @classmethod
    def located(cls) -> tuple[str, ...]:
        return ("output",)

    def parameters(self, host: Host) -> int:
        return 0
