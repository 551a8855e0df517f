"""`adaptome quickstart`: a real pretrained model adapted to real data, offline, in minutes on a CPU.

Read `training.py` to learn the library: it loads an encoder, attaches an adapter, trains, saves and reloads it in a
plain PyTorch loop. `run.py` runs the methods one after the other, each in a process of its own, and compares them.
"""

from adaptome.quickstart.run import quickstart
from adaptome.quickstart.settings import Settings

__all__ = ["Settings", "quickstart"]
