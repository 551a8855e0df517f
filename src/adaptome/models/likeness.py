"""Products of vectors in one space, as scores of which small differences matter.

In bfloat16 a logit near 30, as CLIP's are, is told to an eighth: classes tie, and their loss is coarse.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from adaptome.core.hosts import autocasting


def uncast(x: Tensor) -> AbstractContextManager[object]:
    """No autocast where x is, for the time of the block."""
    return torch.autocast(x.device.type, enabled=False) if autocasting(x) else nullcontext()


def products(a: Tensor, b: Tensor) -> Tensor:
    """a b^T [..., n, m] of a [..., n, d] and b [..., m, d], in float32 or wider under autocast too."""
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    with uncast(a):
        return a.to(wide) @ b.to(wide).mT
