"""Types of PEFT whose tensors and settings are ours under other names: what a table of them says, and how it is read and written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from adaptome.core.errors import FormatError, MergeError
from adaptome.core.hosts import Conv1DHost
from adaptome.core.state import Attachment
from adaptome.interop.peft_types import Parts, PeftType

#: what of PEFT's settings acts on the start or on training alone
STARTS = frozenset({"init_weights", "target_parameters"})


@dataclass(frozen=True)
class Setting:
    """One of PEFT's settings.

    Attributes:
        theirs: its name.
        default: its default there.
        values: ours -> PEFT's, where a value has another name there.
    """

    theirs: str
    default: Any
    values: tuple[tuple[Any, Any], ...] = ()

    def ours(self, config: dict[str, Any]) -> Any:
        """Our value of it.

        Raises:
            FormatError: one that is not here.
        """
        value = config.get(self.theirs, self.default)
        if not self.values:
            return value
        for mine, other in self.values:
            if other == value and type(other) is type(value):
                return mine
        raise FormatError(
            f"{self.theirs} = {value!r} is not here; it may be {', '.join(repr(other) for _, other in self.values)}."
        )

    def written(self, value: Any) -> Any:
        """PEFT's value for ours.

        Raises:
            MergeError: PEFT has none.
        """
        if not self.values:
            return value
        for mine, other in self.values:
            if mine == value:
                return other
        raise MergeError(f"PEFT's {self.theirs} has no value for {value!r}. Export as peft-lora, or merge.")


class Alike(PeftType):
    """A type with a table of settings.

    Attributes:
        type: PEFT's name.
        both: our setting -> PEFT's.
        size: the setting of ours that a layer's tensors tell, with the tensor and its dimension; None for none.
        pattern: PEFT's setting of sizes by layer; '' for none.
    """

    type: ClassVar[str]
    both: ClassVar[dict[str, Setting]] = {}
    size: ClassVar[tuple[str, str, int] | None] = None
    pattern: ClassVar[str] = ""

    def once(self, config: dict[str, Any]) -> dict[str, Any]:
        return {
            name: s.ours(config) for name, s in self.both.items() if self.size is None or name != self.size[0]
        }

    def asked(self, config: dict[str, Any]) -> dict[str, Any]:
        """All of the method's settings that a configuration means, before there are tensors."""
        return {name: setting.ours(config) for name, setting in self.both.items()}

    def settings(self, config: dict[str, Any], path: str, parts: Parts) -> dict[str, Any]:
        if self.size is None:
            return {}
        name, tensor, dimension = self.size
        return {name: parts[tensor].shape[dimension]}

    def config(self, attachment: Attachment) -> dict[str, Any]:
        method: Any = attachment.method
        written = {s.theirs: s.written(getattr(method, name)) for name, s in self.both.items()}
        transposed = all(isinstance(a.host, Conv1DHost) for a in attachment.adapters.values())
        written |= {"fan_in_fan_out": transposed} if transposed else {}
        return {"peft_type": self.type, "init_weights": True, **written, **self._by_layer(attachment)}

    def _by_layer(self, attachment: Attachment) -> dict[str, Any]:
        """Sizes by layer.

        Raises:
            MergeError: PEFT has one value for all.
        """
        names = {key for own in attachment.per_layer.values() for key in own}
        if not names:
            return {}
        if self.size is None or names - {self.size[0]} or not self.pattern:
            raise MergeError(
                f"{self.method} with {', '.join(sorted(names))} by layer: PEFT has one value for all.\n  Export as peft-lora, or merge."
            )
        _, tensor, dimension = self.size
        return {
            self.pattern: {p: self.theirs(a)[tensor].shape[dimension] for p, a in attachment.adapters.items()}
        }
