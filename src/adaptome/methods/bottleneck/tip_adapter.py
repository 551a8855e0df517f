"""Tip-Adapter: a few labelled features beside a zero-shot classifier, which vote for their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.attaching import attach
from adaptome.core.errors import DataError, TargetError
from adaptome.core.hosts import Host, host_of
from adaptome.core.method import Method, option, register
from adaptome.core.plan import Plan
from adaptome.core.state import attachment_of
from adaptome.core.steer import steered
from adaptome.core.targets import resolve
from adaptome.forms.bottleneck import inside_a_block


@register(
    "tip-adapter", category="additive", subcategory="cached features", merge="none", export="none", inference_overhead="extra modules",
    identity_at_init=False, hosts=("linear",), default_targets="head", models=("VFM", "VLM"), source="Zhang et al. 2021, arXiv:2111.03930",
)  # fmt: skip
class TipAdapter(Method):
    r"""Tip-Adapter: a few labelled features beside a zero-shot classifier, which vote for their classes.

        y = W f + alpha V^T exp(-beta (1 - K f / |f|))

    when        few-shot classification with CLIP without training, or with little
    shapes      W [classes, d] the frozen head, its rows texts' features (`zero_shot_head` makes one); f [..., d]; K [n, d] the features
                of n labelled samples, each of length 1; V [n, classes] their labels, one-hot and stored as numbers
    init        does not start as the base: what is attached is the classifier with its cache
    use         `tip_adapter(model, features, labels)` fills the cache, and trains nothing; with train_keys=True it is Tip-Adapter-F.
                Attached by name, without features, the cache holds the head's own rows in turn, one sample a class. A run of a recipe fills
                it with all training examples: `training.max_steps: 0` is Tip-Adapter, training is Tip-Adapter-F
    parameters  n d with train_keys, else 0: 8,192,000 for CLIP ViT-B/16 on ImageNet, 16 samples a class
    merge       none: it is not linear
    source      Zhang et al. 2021, arXiv:2111.03930
    """

    counts_examples: ClassVar[str] = "samples"

    samples: int | None = option(None, at_least=1, help="n; None for one a class")
    alpha: float = option(1.0, at_least=0, help="weight of the cache beside the head")
    beta: float = option(5.5, above=0, help="how sharply the vote falls with the angle between features")
    train_keys: bool = option(True, help="train K, as Tip-Adapter-F; without, nothing trains")

    def admits(self, host: Host) -> str | None:
        return super().admits(host) or inside_a_block(host)

    def n(self, host: Host) -> int:
        """Samples in the cache."""
        return self.samples or host.fan_out

    def parameters(self, host: Host) -> int:
        return self.train_keys * self.n(host) * host.fan_in

    def adapter(self, host: Host, shared: nn.Module | None = None) -> TipAdapterAdapter:
        return TipAdapterAdapter(self, host)


class TipAdapterAdapter(Adapter):
    """The cache of one classifier."""

    own_strength = True
    takes_examples = True

    K: Tensor
    labels: Tensor

    def __init__(self, method: TipAdapter, host: Host):
        super().__init__(host)
        self.alpha, self.beta = method.alpha, method.beta
        self._taken: list[tuple[Tensor, Tensor]] | None = None
        labels = torch.arange(method.n(host)) % host.fan_out
        self.register_buffer("labels", labels)
        W = host.weight()
        K = F.normalize(W.float()[labels.to(W.device)], dim=-1).to(labels.device)
        if method.train_keys:
            self.K = nn.Parameter(K)
        else:
            self.register_buffer("K", K)

    def limits(self) -> dict[str, Any]:
        return {"labels": self.host.fan_out}

    def begin_taking(self) -> None:
        self._taken = []

    def end_taking(self, whole: bool = True) -> None:
        taken, self._taken = self._taken or [], None
        if not taken or not whole:
            return
        features, labels = (torch.cat(column) for column in zip(*taken, strict=True))
        self.put(features.clone(), labels.clone())

    @torch.no_grad()
    def put(self, features: Tensor, labels: Tensor) -> None:
        """Set the cache: features [n, d] of any length, and the numbers of their classes [n].

        Raises:
            DataError: they do not fit the classifier or each other.
        """
        if len(features) != len(self.K):
            raise DataError(
                f"tip-adapter: {len(features)} features for a cache of {len(self.K)}. Set samples={len(features)}."
            )
        _check(features, labels, self.host)
        self.K.copy_(F.normalize(features.float(), dim=-1))
        self.labels.copy_(labels)

    def forward(self, frozen: Frozen, f: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = frozen(f, *args, **kwargs)
        if self._taken is not None and (labels := steered("labels")) is not None:
            self._taken.append((f.detach(), labels))
        near = F.linear(F.normalize(f, dim=-1), self.K.to(f.dtype))
        votes = self.alpha * self.strength * torch.exp(self.beta * (near - 1))
        return y.index_add(-1, self.labels, votes.to(y.dtype))


def tip_adapter(
    model: nn.Module,
    features: Tensor,
    labels: Tensor,
    targets: str | Sequence[str] = "head",
    name: str = "default",
    *,
    train_keys: bool = False,
    alpha: float = 1.0,
    beta: float = 5.5,
    **how: Any,
) -> Plan:
    """Put a cache of labelled features beside a classifier.

    Args:
        model: with a linear layer that classifies features.
        features: `[n, d]`, as the layer is given them, of any length.
        labels: `[n]`, the numbers of their classes.
        targets: the classifier; as for `attach`, and one layer.
        name: of the adapter.
        train_keys, alpha, beta: as the method's.
        how: further arguments of `attach`.

    Raises:
        TargetError: the targets are several layers.
        DataError: features and labels do not fit the classifier or each other.
    """
    hosts = [host_of(m.module, m.path, m.parameter, m.role, m.layer) for m in resolve(model, targets)]
    if len(hosts) > 1:
        raise TargetError(
            f"tip_adapter: targets={targets!r} matches {len(hosts)} layers, {hosts[0].name}, {hosts[1].name}, ...; name one classifier."
        )
    method = TipAdapter(samples=max(1, len(features)), alpha=alpha, beta=beta, train_keys=train_keys)
    method.check(hosts[0])
    _check(features, labels, hosts[0])
    plan = attach(model, method, name, targets=targets, **how)
    (adapter,) = attachment_of(model, name).adapters.values()
    assert isinstance(adapter, TipAdapterAdapter)
    adapter.put(features, labels)
    return plan


def _check(features: Tensor, labels: Tensor, host: Host) -> None:
    """Raise DataError when they do not fit."""
    classes, d = host.fan_out, host.fan_in
    if features.dim() != 2 or features.shape[1] != d or not len(features):
        raise DataError(
            f"tip_adapter: features {list(features.shape)} must be [n, {d}], as {host.name} is given them."
        )
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise DataError(
            f"tip_adapter: labels {list(labels.shape)} of {labels.dtype} must be {len(features)} whole numbers, one for each of the features."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(
            f"tip_adapter: labels run from {int(labels.min())} to {int(labels.max())}; {host.name} has the classes 0 to {classes - 1}."
        )
    if not features.isfinite().all() or not features.any(-1).all():
        raise DataError("tip_adapter: some of the features are not finite, or zero, and have no direction.")


def zero_shot_head(features: Tensor, scale: float = 100.0) -> nn.Linear:
    """A classifier of image features of length 1 from each class's text features `[classes, d]`: `scale` times their cosines.

    Args:
        features: of any length.
        scale: exp of CLIP's logit scale.
    """
    head = nn.Linear(
        features.shape[1], len(features), bias=False, device=features.device, dtype=features.dtype
    )
    with torch.no_grad():
        head.weight.copy_(scale * F.normalize(features, dim=-1))
    return head
