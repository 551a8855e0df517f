"""Classifiers on an encoder's states, where the model's own head pools them otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn


def pooled_by_mean(folder: str) -> bool:
    """True for a folder whose sentence-transformers files say that the encoder was trained with mean pooling."""
    file = Path(folder) / "1_Pooling" / "config.json"
    if not file.is_file():
        return False
    return bool(json.loads(file.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens", False))


def say_pooled_by_mean(folder: Path) -> None:
    """Make a folder one of which `pooled_by_mean` is true."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")


class EncoderClassifier(nn.Module):
    """encoder -> pooled states -> dropout -> linear. A subclass says how it pools, and its forward ends in `classified`.

    A plain module: the encoder keeps its own keys below `encoder.`, and the head is `classifier`. It is saved as
    an adapter with its head (`train=["classifier"]`), and built again by the task's `load_model`.
    """

    # The Trainer would take a forward that accepts anything for one that scales its own loss.
    accepts_loss_kwargs = False
    base_model_prefix = "encoder"

    def __init__(self, encoder: nn.Module, labels: int, dropout: float = 0.1, multi_label: bool = False):
        super().__init__()
        self.encoder = encoder
        config: Any = encoder.config
        self.config = config
        self.multi_label = multi_label
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, labels)
        nn.init.normal_(self.classifier.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)
        reference = next(encoder.parameters())
        self.classifier.to(dtype=reference.dtype, device=reference.device)

    def classified(self, pooled: Tensor, labels: Tensor | None) -> Any:
        """Logits of pooled states [batch, hidden], with the loss where there are labels."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        logits = self.classifier(self.dropout(pooled))
        return SequenceClassifierOutput(loss=self._loss(logits, labels), logits=logits)

    def _loss(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            return None
        if self.multi_label:
            return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return nn.functional.cross_entropy(logits.float(), labels)

    @property
    def device(self) -> torch.device:
        return self.classifier.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.classifier.weight.dtype

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()  # type: ignore[operator]

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        self.encoder.gradient_checkpointing_enable(*args, **kwargs)  # type: ignore[operator]

    def gradient_checkpointing_disable(self) -> None:
        self.encoder.gradient_checkpointing_disable()  # type: ignore[operator]

    def enable_input_require_grads(self) -> None:
        self.encoder.enable_input_require_grads()  # type: ignore[operator]


class MeanPooledClassifier(EncoderClassifier):
    """encoder -> mean of the states of real tokens -> dropout -> linear.

    shapes      input_ids, attention_mask [batch, length] -> logits [batch, labels]
    """

    def features(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The pooled states [batch, hidden], before dropout: what a linear probe is trained on."""
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.classified(self.features(input_ids, mask, token_type_ids), labels)


class SpectrogramClassifier(EncoderClassifier):
    """A spectrogram transformer -> its states, the mean over all tokens or the first one -> dropout -> linear.

    shapes      input_values [batch, frames, mels] -> logits [batch, labels]

    The mean is over special tokens too, as in Cappellazzo et al. 2024, arXiv:2312.03694.
    """

    main_input_name = "input_values"

    def __init__(self, encoder: nn.Module, labels: int, dropout: float, over: Literal["mean", "cls"]):
        super().__init__(encoder, labels, dropout)
        self.over = over

    def forward(self, input_values: Tensor, labels: Tensor | None = None) -> Any:
        states = self.encoder(input_values).last_hidden_state
        return self.classified(states.mean(1) if self.over == "mean" else states[:, 0], labels)
