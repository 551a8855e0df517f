"""PETALface's released recogniser as a folder that recipes name: `swin_cosface_webface4m` and the like.

    python -m adaptome.models.face_release model.safetensors petalface-webface4m

The release is a pickle (`model.pt`). Where you trust it, `safetensors.torch.save_file(torch.load(path, weights_only=True), "model.safetensors")`
makes the file that is read here; a pickle is not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from adaptome.core.errors import AdaptomeError, ModelError
from adaptome.models.face_recogniser import FaceRecogniser
from adaptome.models.face_swin import KIND

#: their names -> ours; all others stand in the encoder under the same names
EMBEDDING = {"feature_layer.0.": "embedding.before.", "feature_layer.2.": "embedding.linear.", "feature_layer.3.": "embedding.after."}  # fmt: skip
#: what is made anew from the configuration
MADE = ("relative_position_index", "attn_mask")


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's tensors under the recogniser's names.

    Raises:
        ModelError: there are adapters among them.
    """
    made: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("module.")
        if "lora" in name.lower():
            raise ModelError(
                f"{key}: these weights have adapters in them. Take a release without, such as swin_cosface_webface4m, and train the adapters here."
            )
        if name.rpartition(".")[2] in MADE:
            continue
        old = next((prefix for prefix in EMBEDDING if name.startswith(prefix)), None)
        made[f"encoder.{name}" if old is None else EMBEDDING[old] + name.removeprefix(old)] = tensor
    return made


def released(tensors: Mapping[str, Tensor], **config: Any) -> FaceRecogniser:
    """The recogniser of a release.

    Args:
        **config: of its face-swin, where it is not the paper's.

    Raises:
        ModelError: tensors are missing or more than its, or of other shapes.
    """
    encoder = {"from_config": {"model_type": KIND, **config}}
    width = tensors.get("feature_layer.2.weight", tensors.get("module.feature_layer.2.weight"))
    if width is None:
        raise ModelError("no tensor feature_layer.2.weight: this is no release of PETALface's Swin.")
    made = FaceRecogniser.from_settings(weights=False, encoder=encoder, width=int(width.shape[0]))
    own = renamed(tensors)
    kept = {key: value for key, value in made.state_dict().items() if key.startswith("head.") or key.endswith("num_batches_tracked")}  # fmt: skip
    try:
        made.load_state_dict({**kept, **own})
    except RuntimeError as error:
        raise ModelError(f"this is no release of PETALface's Swin of that configuration: {error}") from error
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when the folder is written."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    asked = argparse.ArgumentParser(prog="python -m adaptome.models.face_release", description=str(__doc__).split("\n")[0])  # fmt: skip
    asked.add_argument("file", type=Path, help="the release's tensors, as safetensors")
    asked.add_argument("out", type=Path, help="the folder to write")
    asked.add_argument(
        "--config", type=json.loads, default={}, help="of its face-swin as JSON, where it is not the paper's"
    )
    told = asked.parse_args(argv)
    try:
        released(load_file(told.file), **told.config).save_pretrained(told.out)
    except (AdaptomeError, OSError, SafetensorError) as error:
        print(error, file=sys.stderr)
        return 1
    print(told.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
