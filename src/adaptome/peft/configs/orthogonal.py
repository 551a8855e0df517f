"""PEFT's configurations of rotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from adaptome.core.errors import MethodError
from adaptome.core.hosts import host_of
from adaptome.peft.configs.base import PeftConfig, Targeted


def _width(config: PeftConfig, path: str, module: nn.Module | None, count: int) -> dict[str, Any]:
    """The width of blocks where their number is given."""
    if not count or module is None:
        return {}
    inputs = host_of(module, path).fan_in
    if inputs % count:
        raise MethodError(
            f"{type(config).__name__}: {count} blocks do not divide the {inputs} inputs of {path}."
        )
    return {"size": inputs // count}


@dataclass
class BOFTConfig(Targeted):
    """BOFT."""

    kind: ClassVar[str] = "BOFT"

    boft_block_size: int = 4
    boft_block_num: int = 0
    boft_n_butterfly_factor: int = 1
    boft_dropout: float = 0.0
    init_weights: bool = True

    def check(self) -> None:
        super().check()
        if bool(self.boft_block_num) == bool(self.boft_block_size):
            raise MethodError(
                f"BOFTConfig: give either boft_block_size or boft_block_num, the other 0; they are {self.boft_block_size} and {self.boft_block_num}."
            )

    def method(self) -> tuple[str, dict[str, Any]]:
        return "boft", {
            "size": self.boft_block_size or 2,
            "factors": self.boft_n_butterfly_factor,
            "scale": True,
            "dropout": self.boft_dropout,
        }

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        return _width(self, path, module, self.boft_block_num)


@dataclass
class OFTConfig(Targeted):
    """OFT; by default turned by PEFT's series."""

    kind: ClassVar[str] = "OFT"

    r: int = 0
    oft_block_size: int = 32
    module_dropout: float = 0.0
    init_weights: bool = True
    coft: bool = False
    eps: float = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = 5

    def check(self) -> None:
        super().check()
        if bool(self.r) == bool(self.oft_block_size):
            raise MethodError(
                f"OFTConfig: give either r or oft_block_size, the other 0; they are {self.r} and {self.oft_block_size}."
            )
        if self.use_cayley_neumann and self.num_cayley_neumann_terms < 4:
            raise MethodError("OFTConfig: num_cayley_neumann_terms is 4 or more here.")

    def method(self) -> tuple[str, dict[str, Any]]:
        terms = self.num_cayley_neumann_terms - 2 if self.use_cayley_neumann else 0
        return "oft", {
            "size": self.oft_block_size or 2, "block_share": self.block_share, "series": terms, "dropout": self.module_dropout,
            "coft": self.coft, "eps": self.eps,
        }  # fmt: skip

    def layer(self, path: str, module: nn.Module | None) -> dict[str, Any]:
        return _width(self, path, module, self.r)
