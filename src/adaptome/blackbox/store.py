"""What a black box said, on disk: a file of safetensors for every batch that was asked, written whole or not at all.

<folder>/<digest of the black box's identity>/
  identity.json                what the answers depend on
  <digest of the batch>.safetensors   a tensor for each text, by the text's digest
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from adaptome.core.errors import TornFileError
from adaptome.core.files import sweep_staging, write_atomic

IDENTITY = "identity.json"
#: files that are held open at once
OPEN = 64


def digest(text: str) -> str:
    """A text's key."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Store:
    """Answers by text.

    Args:
        folder: for all black boxes.
        identity: of this one.
        dtype: in which the answers are kept, and given from the first time on.

    Raises:
        TornFileError: a file in it is no whole safetensors file.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], dtype: torch.dtype = torch.float16):
        told = json.dumps({**identity, "dtype": str(dtype)}, sort_keys=True, ensure_ascii=False, indent=1)
        self.folder, self.dtype = Path(folder) / digest(told)[:16], dtype
        self.calls = 0  # all that were ever made, a text that was asked twice counted twice
        self._at: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        if self.folder.is_dir():
            sweep_staging(self.folder)
            for shard in sorted(self.folder.glob("*.safetensors")):
                self._index(shard)
        else:
            self.folder.mkdir(parents=True)
        if not (self.folder / IDENTITY).is_file():
            write_atomic(self.folder / IDENTITY, told)

    def _index(self, shard: Path) -> None:
        keys = list(self._opened(shard).keys())
        self.calls += len(keys)
        self._at |= dict.fromkeys(keys, shard)

    def __contains__(self, text: str) -> bool:
        return digest(text) in self._at

    def __getitem__(self, text: str) -> Tensor:
        """What was said of a text, [tokens, width]."""
        key = digest(text)
        found: Tensor = self._opened(self._at[key]).get_tensor(key)
        return found

    def put(self, answers: Mapping[str, Tensor]) -> None:
        """Keep answers, all in one file."""
        named = {
            digest(text): one.detach().to("cpu", self.dtype).contiguous() for text, one in answers.items()
        }
        shard = self.folder / f"{digest(' '.join(sorted(named)))[:24]}.safetensors"
        write_atomic(shard, save(named))
        self._index(shard)

    def _opened(self, shard: Path) -> Any:
        if shard in self._open:
            return self._open[shard]
        if len(self._open) >= OPEN:
            self._open.clear()
        try:
            self._open[shard] = safe_open(str(shard), framework="pt")
        except (SafetensorError, OSError) as error:
            raise TornFileError(
                f"{shard}, a file of a black box's answers, cannot be read: {error}.\n  Delete it: what it held is asked again."
            ) from error
        return self._open[shard]
