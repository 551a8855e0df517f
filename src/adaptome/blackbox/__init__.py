"""Models that answer and give no gradients: an API, a local model, any callable. What they say of a text is asked once and kept on disk.

    box = get_black_box("local", model="folder")                       # or endpoint; a package registers its own
    asked = Asked(box, "runs/black-box", budget=500)                   # counted, cached, limited
    asked.states("a text")                                             # [tokens, width]

    @BLACK_BOXES.register("mine")                                      # named under the entry point `adaptome.blackbox`
    class Mine(BlackBox): ...

`Calling` makes one of a function. Generators of further texts are in `blackbox.generators`.
"""

from adaptome.blackbox.asked import Asked
from adaptome.blackbox.base import BLACK_BOXES, BlackBox, BlackBoxSettings, Calling, get_black_box
from adaptome.blackbox.store import Store

__all__ = ["BLACK_BOXES", "Asked", "BlackBox", "BlackBoxSettings", "Calling", "Store", "get_black_box"]
