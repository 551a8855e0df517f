"""A saved adapter's layers on a model of the same base with another head."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn

from adaptome.core.checkpoint import put_in
from adaptome.core.errors import KeyMismatchError
from adaptome.core.fingerprint import check_shared_weights
from adaptome.core.manifest import read_manifest, read_tensors
from adaptome.core.state import attachment_of, root_of, tensors_of


def carry(
    model: nn.Module, folder: str | os.PathLike[str], name: str = "default", new: Sequence[str] = ()
) -> int:
    """Fill an attached adapter from one that `ad.save` wrote on the same base with another head.

    Args:
        model: with an adapter `name` of the same method, settings and targets.
        folder: the saved adapter. Of its heads, those that this model does not have are left behind.
        new: this model's heads, modules or single parameters: they stay as they are.

    Returns:
        how many tensors were filled.

    Raises:
        BaseMismatchError: the two models share no weights, or these differ.
        KeyMismatchError: the adapters differ in method, layers or size; nothing is filled then.
        CheckpointError: the folder is not whole.
    """
    manifest = read_manifest(folder)
    attachment, source = attachment_of(model, name), str(folder)
    check_shared_weights(root_of(model), manifest["base"])
    modules = {path for path, _ in root_of(model).named_modules()}
    heads = {*attachment.heads, *manifest.get("heads", ())}
    left = tuple(f"{h}." for h in heads if h not in modules or any(_within(h, n) for n in new))
    found = {k: v for k, v in read_tensors(folder, manifest).items() if not k.startswith(left)}
    wanted = {k for k in tensors_of(attachment) if not k.startswith(left)}
    differing = sorted(wanted ^ set(found))
    if differing or manifest["method"] != attachment.method.name:
        raise KeyMismatchError(
            f"{source} holds {manifest['method']} of {len(found)} tensors, this adapter is {attachment.method.name} of {len(wanted)}"
            + (f"; only one of them has {differing[0]}" if differing else "")
            + ".\n  Give it the same method, settings and targets. Nothing was filled."
        )
    put_in(attachment, found, source)
    return len(found)


def _within(path: str, named: str) -> bool:
    """Whether a module is the named one, inside it, or holds the named parameter."""
    return path == named or path.startswith(f"{named}.") or named.startswith(f"{path}.")
