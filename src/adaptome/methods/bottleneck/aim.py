"""AIM: a frozen picture transformer reads videos, its own attention run over time as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import MethodError, StateError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.steer import steered
from adaptome.forms.bottleneck import affine
from adaptome.forms.token_merging import residual_paths


@register(
    "aim", category="additive", subcategory="bottleneck adapter", models=("VFM", "VLM"), merge="none", export="none",
    inference_overhead="extra modules", hosts=("module",), default_targets="blocks", source="Yang et al. 2023, arXiv:2302.03024",
)  # fmt: skip
class AIM(Method):
    r"""AIM: a frozen picture transformer reads videos, its own attention run over time as well.

        x = x + T(attn(norm1(x^t)))^t                        x^t: each place's tokens over the frames of its clip
        h = attn(norm1(x)),   x = x + h + S(h)
        z = norm2(x),         x = x + mlp(z) + s M(z)        T, S, M = U gelu(D h + d) + u, each its own

    when        pictures' encoders (CLIP, ViT) for clips, where what happens between frames matters
    shapes      x [clips T, tokens, w]; D [b, w], d [b], U [w, b], u [w]; b = round(w / reduction), or size
    init        D normal(0, 0.02^2), cut at two; the rest 0: starts as the base, frame by frame
    use         `ad.steer(frames=T)`: the batch's rows are clips of T frames, one after another; without it pictures are clips of one frame
    sets        sets=("frames", "parsing+landmarks"): networks of their own for each set of streams, told by `ad.steer(stream="parsing")`
    placement   blocks of the forms of ViT, CLIP, SigLIP and DINOv2; no other adapter may be on the block itself before it
    parameters  3 (2 w b + b + w) per block and set: 10,651,392 for CLIP ViT-B/16, reduction = 4
    merge       none: it is not linear
    source      Yang et al. 2023, arXiv:2302.03024, section 3; sets: FineCLIPER, arXiv:2407.02157
    """

    size: int = option(192, at_least=1, help="the bottleneck b")
    reduction: float = option(4.0, at_least=0, help="b = round(w / reduction) in place of size; 0: size")
    scale: float = option(0.5, help="s")
    temporal: bool = option(
        True, help="False: without the attention over time and T, frames are seen one by one"
    )
    drop_path: float = option(
        0.0, at_least=0, below=1, help="chance that training leaves T's and M's part out for a row"
    )
    sets: tuple[str, ...] = option(
        (), help="sets of streams, joined by '+', with networks of their own; (): one for all"
    )

    def validate(self) -> None:
        named = [stream for one in self.sets for stream in one.split("+")]
        twice = next((stream for stream in named if named.count(stream) > 1 or not stream), None)
        if twice is not None:
            raise MethodError(
                f"aim: the stream {twice!r} is in two of sets={list(self.sets)}, or has no name. Each belongs to one set."
            )

    def sized(self, value: int) -> Method:
        return self.replace(size=value, reduction=0.0)

    def bottleneck(self, width: int) -> int:
        """b."""
        return max(1, round(width / self.reduction)) if self.reduction else self.size

    def admits(self, host: Host) -> str | None:
        if host.kind != "module" or residual_paths(host.layer) is None:
            held = list(getattr(host.layer, "_modules", {}))
            return f"it goes on blocks x + attention(norm(x)), x + mlp(norm(x)) as in ViT, CLIP and DINOv2; no block that it knows has {held}"
        return None

    def parameters(self, host: Host) -> int:
        w, b = host.width, self.bottleneck(host.width)
        return max(1, len(self.sets)) * (2 + self.temporal) * (2 * w * b + b + w)

    def example_facts(self) -> tuple[dict[str, Any], ...]:
        return tuple({"stream": one.split("+")[0]} for one in self.sets) or ({},)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> AIMAdapter:
        return AIMAdapter(self, host)


class Network(nn.Module):
    """`U gelu(D h + d) + u` on activations of width w."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.D, self.d = nn.Parameter(torch.empty(size, width)), nn.Parameter(torch.zeros(size))
        self.U, self.u = nn.Parameter(torch.zeros(width, size)), nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.D, std=0.02, a=-0.04, b=0.04)

    def forward(self, h: Tensor) -> Tensor:
        return affine(nn.functional.gelu(affine(h, self.D, self.d)), self.U, self.u)


class AIMAdapter(Adapter):
    """The networks of one block: `T.0`, `S.0`, `M.0` of the first set, and so on."""

    def __init__(self, method: AIM, host: Host):
        super().__init__(host)
        paths = residual_paths(host.layer)
        assert paths is not None  # it was admitted
        self.paths, self.scale, self.drop_path = paths, method.scale, method.drop_path
        self.sets = [one.split("+") for one in method.sets]
        count, size = max(1, len(self.sets)), method.bottleneck(host.width)
        made = [nn.ModuleList(Network(host.width, size) for _ in range(count)) for _ in range(3)]
        self.T = made[0] if method.temporal else None
        self.S, self.M = made[1], made[2]
        self.may_idle = count > 1

    def forward(
        self, frozen: Frozen, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if frozen.below:
            raise StateError(
                f"aim on {self.host.name}: another adapter is on this block before it and would be passed over. Attach aim first."
            )
        x, which = hidden_states, self._set()
        if self.T is not None:
            h = self._over_time(x)
            x = x + self._dropped(self.T[which](h))
        h = self._path(0, self._normed(0, x), attention_mask=attention_mask, **kwargs)
        x = x + h + self.S[which](h)
        z = self._normed(1, x)
        return x + self._path(1, z) + self._dropped(self.scale * self.M[which](z))

    def _set(self) -> int:
        """The number of the set that the steered stream is in.

        Raises:
            StateError: none is steered, or one that no set has.
        """
        if not self.sets:
            return 0
        stream = steered("stream")
        found = next((i for i, one in enumerate(self.sets) if stream in one), None)
        if found is None:
            raise StateError(
                f"aim has networks for the streams {[s for one in self.sets for s in one]}, and "
                f"{'no stream is steered' if stream is None else f'{stream!r} is none of them'}: ad.steer(stream=...)."
            )
        return found

    def _over_time(self, x: Tensor) -> Tensor:
        """attn(norm1(x)) of each place over the frames of its clip, [clips T, tokens, w] as x."""
        frames = int(steered("frames", 1))
        if x.shape[0] % frames:
            raise StateError(
                f"aim: {x.shape[0]} rows are no whole clips of frames={frames}. Steer the number of frames that the batch's clips have."
            )
        clips = self._normed(0, x).unflatten(0, (-1, frames))
        lines = clips.transpose(1, 2).flatten(0, 1)
        made = self._path(0, lines, attention_mask=None)
        return made.unflatten(0, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1)

    def _normed(self, path: int, x: Tensor) -> Tensor:
        made: Tensor = getattr(self.host.layer, self.paths[path][0])(x)
        return made

    def _path(self, path: int, z: Tensor, **attention: Any) -> Tensor:
        """What a residual path makes of normalised activations."""
        main, *rest = (getattr(self.host.layer, name) for name in self.paths[path][1:])
        y = main(z, **attention)
        y = y[0] if isinstance(y, tuple) else y
        for module in rest:
            y = module(y)
        made: Tensor = y
        return made

    def _dropped(self, added: Tensor) -> Tensor:
        """The part, left out of some rows in training and made up for in the others (stochastic depth)."""
        if not self.training or not self.drop_path:
            return added
        kept = added.new_empty(len(added), *[1] * (added.dim() - 1)).bernoulli_(1 - self.drop_path)
        return added * kept / (1 - self.drop_path)
