"""The configuration of any method of ours."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from adaptome.peft.configs.base import Targeted


@dataclass
class AdaptomeConfig(Targeted):
    """Any method of ours, by its name and settings; targets in PEFT's way, or in ours with `targets`."""

    kind: ClassVar[str] = "ADAPTOME"

    name: str = "lora"
    settings: dict[str, Any] = field(default_factory=dict)
    targets: list[str] | str | None = None

    def __init__(self, method: str = "lora", *, targets: list[str] | str | None = None, **how: Any):
        own = {f.name for f in fields(Targeted)}
        super().__init__(**{k: v for k, v in how.items() if k in own})
        self.name, self.targets = how.get("name", method), targets
        self.settings = how.get("settings", {k: v for k, v in how.items() if k not in own and k != "name"})

    def method(self) -> tuple[str, dict[str, Any]]:
        return self.name, dict(self.settings)
