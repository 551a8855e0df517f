"""PEFT's types whose tensors and settings are ours under other names."""

from adaptome.interop.peft_alike.base import Alike
from adaptome.interop.peft_alike.low_rank import (
    DeLoRAType,
    GLoRAType,
    GraLoRAType,
    HiRAType,
    MiSSType,
    PEANuTType,
    VBLoRAType,
)
from adaptome.interop.peft_alike.others import (
    BEFTType,
    C3AType,
    DEFTType,
    HRAType,
    RoADType,
    SHiRAType,
    WaveFTType,
)

#: PEFT's name -> how it is read and written
ALIKE: dict[str, Alike] = {
    form.type: form
    for form in (
        BEFTType(), C3AType(), DEFTType(), DeLoRAType(), GLoRAType(), GraLoRAType(), HiRAType(), HRAType(), MiSSType(), PEANuTType(), RoADType(), SHiRAType(),
        VBLoRAType(), WaveFTType(),
    )
}  # fmt: skip
