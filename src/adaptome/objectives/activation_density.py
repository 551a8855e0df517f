r"""activation-density: the share of activations that are not zero, in a form that has a gradient (DEFT).

    L = 1/L sum_l g_l mean over tokens and units of phi(o_l),  g_l = 1, or the layer's gate
    eps:   phi(o) = o^2 / (o^2 + eps)          what the authors' code has; half at |o| = sqrt(eps)
    tanh:  phi(o) = tanh(beta |o|)             unverified form of the paper's text; offered as an option

of the outputs of the MLPs' activations (in a gated MLP, before the product), or of the modules that `targets` names; an encoder and a
decoder have a mean each, and these are summed. Evaluation counts exactly: `density`, its mean over samples, then over layers.
Runwal et al. 2024, arXiv:2402.01911. The authors average over padding too, which makes it free to empty: `mask: false` does so here.
The gates are those of `mlp-gate`; weighing by them is our reading of ADA-DEFT, whose formula we could not verify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adaptome.core.activations import mlps
from adaptome.core.adapter import ATTRIBUTE
from adaptome.core.errors import TrainingError
from adaptome.objectives.base import Needs, Objective, Seen, TermSettings, Watch, register_objective

ACTIVATIONS = "activations"


class ActivationDensitySettings(TermSettings):
    phi: Literal["eps", "tanh"] = Field(default="eps", description="what stands for 'is not zero'")
    eps: float = Field(default=1e-7, gt=0, description="smoothing of eps")
    beta: float = Field(default=20.0, gt=0, description="steepness of tanh")
    targets: str | list[str] = Field(
        default=ACTIVATIONS,
        description="'activations' for those of the MLPs; else modules whose input or output is looked at: roles or patterns",
    )
    of: Literal["input", "output"] = Field(
        default="input",
        description="of the modules that targets names; 'down' with input: what the last maps are given",
    )
    mask: bool = Field(default=True, description="leave padding out")
    threshold: float = Field(
        default=1e-3,
        ge=0,
        description="evaluation counts magnitudes beyond it as well (GELU is seldom exactly 0)",
    )
    gated: bool = Field(default=False, description="weigh every layer by its gate (method mlp-gate)")


@register_objective("activation-density")
class ActivationDensity(Objective):
    """Fewer activations that are not zero."""

    Settings = ActivationDensitySettings

    def needs(self) -> Needs:
        if self.settings.targets == ACTIVATIONS:
            return Needs(watch=Watch(_activations, "output", self._of_tokens))
        return Needs(watch=Watch(self.settings.targets, self.settings.of, self._of_tokens))

    def phi(self, o: Tensor) -> Tensor:
        """The smooth indicator, number by number, in at least float32: squares of half precision are 0 too early."""
        o = o.to(torch.promote_types(o.dtype, torch.float32))
        if self.settings.phi == "tanh":
            return (self.settings.beta * o.abs()).tanh()
        squares = o.square()
        return squares / (squares + self.settings.eps)

    def _of_tokens(self, o: Tensor) -> Tensor:
        """Means over the units `[1, ..., tokens]`: smooth; without gradients also exact and beyond the threshold `[3, ..., tokens]`."""
        smooth = self.phi(o).mean(-1)
        if torch.is_grad_enabled():
            return smooth[None]
        exact = (o != 0).to(smooth.dtype).mean(-1)
        return torch.stack((smooth, exact, (o.abs() > self.settings.threshold).to(smooth.dtype).mean(-1)))

    def value(self, outputs: Any, batch: Mapping[str, Any], seen: Seen) -> Tensor:
        gates = gates_of(seen.model) if self.settings.gated else {}
        total: Tensor | None = None
        for stack in stacks(seen.model, seen.watched).values():
            values = [
                self._mean(path, seen.watched[path][0], batch, seen.model) * gates.get(path, 1.0)
                for path in stack
            ]
            mean = torch.stack([value.to(values[0].device) for value in values]).mean()
            total = mean if total is None else total + mean.to(total.device)
        assert total is not None
        return total

    def _mean(self, path: str, tokens: Tensor, batch: Mapping[str, Any], model: nn.Module) -> Tensor:
        mask = self._mask(path, tokens, batch, model)
        return tokens.mean() if mask is None else (tokens * mask).sum() / mask.sum().clamp(min=1)

    def _mask(self, path: str, tokens: Tensor, batch: Mapping[str, Any], model: nn.Module) -> Tensor | None:
        """Which tokens `[batch, tokens]` count; None for all."""
        if not self.settings.mask:
            return None
        if _stack(model, path) == "decoder":
            mask, labels = batch.get("decoder_attention_mask"), batch.get("labels")
            mask = labels != -100 if mask is None and isinstance(labels, Tensor) else mask
        else:
            mask = batch.get("attention_mask")
        fits = isinstance(mask, Tensor) and mask.shape == tokens.shape
        return mask.to(tokens) if fits else None  # type: ignore[union-attr]

    def measures(self, batch: Mapping[str, Any], seen: Seen) -> dict[str, Tensor]:
        """`density`, and `density_above` the threshold; of an encoder and a decoder each."""
        found: dict[str, Tensor] = {}
        for name, paths in stacks(seen.model, seen.watched).items():
            layers = []
            for path in paths:
                tokens = seen.watched[path][1:]
                mask = self._mask(path, tokens[0], batch, seen.model)
                if tokens.dim() > 2 and mask is not None:  # of a sample first, then over samples
                    tokens = ((tokens * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean(-1)
                layers.append(tokens.reshape(len(tokens), -1).mean(-1))
            means = torch.stack([layer.to(layers[0].device) for layer in layers]).mean(0)
            suffix = f"_{name}" if name else ""
            found |= {f"density{suffix}": means[0], f"density_above{suffix}": means[1]}
        return found


def density(o: Tensor, mask: Tensor | None = None, threshold: float = 0.0) -> Tensor:
    """The exact share of activations beyond the threshold, of each sample, then over samples.

    Args:
        o: `[batch, tokens, units]`. mask: `[batch, tokens]`, of the tokens that count.
        threshold: magnitudes up to it are zeros.
    """
    dense = (o.abs() > threshold).float().mean(-1)
    if mask is None:
        return dense.mean()
    return ((dense * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean()


def _activations(model: nn.Module) -> list[str]:
    return [f"={mlp.activation}" for mlp in mlps(model)]


def _stack(model: nn.Module, path: str) -> str:
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return ""
    return "decoder" if "decoder" in path.split(".") else "encoder"


def stacks(model: nn.Module, paths: Sequence[str] | Mapping[str, Any]) -> dict[str, list[str]]:
    """Paths by the stack they are in: encoder and decoder, or '' where the model is one."""
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(_stack(model, path), []).append(path)
    return found


def gates_of(model: nn.Module) -> dict[str, Tensor]:
    """Path of an activation -> the gate of its MLP.

    Raises:
        TrainingError: no MLP has a gate.
    """
    found = {}
    for mlp in mlps(model):
        for adapter in getattr(model.get_submodule(mlp.host), ATTRIBUTE, nn.ModuleDict()).values():
            if callable(gate := getattr(adapter, "gate", None)):
                found[mlp.activation] = gate()
    if not found:
        raise TrainingError(
            "activation-density.gated weighs layers by the gates of their MLPs, and there are none.\n"
            "  Put them on beside the method: methods: [..., mlp-gate]."
        )
    return found
