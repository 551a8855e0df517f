"""Pictures from noise by a scheduler of diffusers, with classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptome.core.errors import ModelError, did_you_mean

#: latents [B, C, h, w] and times [B] -> what the model predicts of them, with the text and without it
Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


def scheduler_named(scheduler: Any, name: str | None) -> Any:
    """A copy of a scheduler to sample with, or another of diffusers with its settings.

    Raises:
        ModelError: there is none of this name; names the nearest.
    """
    if name is None or name == type(scheduler).__name__:
        return copy.deepcopy(scheduler)
    import diffusers

    kind = getattr(diffusers, name, None)
    if kind is None or not hasattr(kind, "set_timesteps"):
        known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
        raise ModelError(f"no scheduler of diffusers is called {name!r}.{did_you_mean(name, known)}")
    return kind.from_config(scheduler.config)


def denoised(
    predict: Predict,
    scheduler: Any,
    noise: Tensor,
    steps: int,
    guidance: float = 1.0,
    *,
    start: Tensor | None = None,
    strength: float = 1.0,
    tokens: int | None = None,
    even: bool = False,
    generators: Sequence[torch.Generator] | None = None,
    step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Latents of pictures.

    Args:
        predict: the model; its second answer is read where guidance is above 1.
        scheduler: used up: see `scheduler_named`.
        noise: N(0, 1) [B, C, h, w].
        steps: of the scheduler.
        guidance: g in  without + g (with - without).
        start: latents to begin from in place of noise, made noisy by `strength` of the steps.
        tokens: of a picture, for schedulers whose steps depend on it (Flux, SD3.5).
        even: noise levels evenly from 1 to 1 / steps (Flux), not the scheduler's own.
        generators: of the schedulers that draw noise at their steps, one for each picture.
        step: called after every step.
    """
    times = timesteps(scheduler, steps, noise.device, tokens, even)
    if start is None:
        z = noise * (1.0 if "FlowMatch" in type(scheduler).__name__ else float(scheduler.init_noise_sigma))
    else:
        first = min(max(len(times) - max(round(strength * steps), 1) * scheduler.order, 0), len(times) - 1)
        times = times[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        if hasattr(scheduler, "scale_noise"):
            z = scheduler.scale_noise(start, times[:1], noise)
        else:
            z = scheduler.add_noise(start, noise, times[:1])
    extra = {}
    if generators is not None and "generator" in inspect.signature(scheduler.step).parameters:
        extra["generator"] = list(generators)
    for time in times:
        scaled = scheduler.scale_model_input(z, time) if hasattr(scheduler, "scale_model_input") else z
        with_text, without = predict(scaled, time.expand(len(z)))
        if without is not None:
            with_text = without + guidance * (with_text - without)
        z = scheduler.step(with_text, time, z, return_dict=False, **extra)[0]
        step()
    return z


def timesteps(
    scheduler: Any, steps: int, device: torch.device, tokens: int | None = None, even: bool = False
) -> Tensor:
    """The times of a number of steps; the scheduler is set to them.

    Schedulers of flows that shift their steps by the size of the picture are told of it as diffusers' pipelines do.
    """
    config, how = scheduler.config, dict[str, Any]()
    if config.get("use_dynamic_shifting") and tokens is not None:
        small, large = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        how["mu"] = low + (tokens - small) * (high - low) / (large - small)
    if even and not config.get("use_flow_sigmas"):
        how["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    else:
        how["num_inference_steps"] = steps
    scheduler.set_timesteps(device=device, **how)
    times: Tensor = scheduler.timesteps
    return times
