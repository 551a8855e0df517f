"""PEFT's configurations, with its names and defaults, and what each means as a method of ours."""

from adaptome.peft.configs.alike import (
    BeftConfig as BeftConfig,
)
from adaptome.peft.configs.alike import (
    C3AConfig as C3AConfig,
)
from adaptome.peft.configs.alike import (
    DeftConfig as DeftConfig,
)
from adaptome.peft.configs.alike import (
    DeloraConfig as DeloraConfig,
)
from adaptome.peft.configs.alike import (
    GloraConfig as GloraConfig,
)
from adaptome.peft.configs.alike import (
    GraloraConfig as GraloraConfig,
)
from adaptome.peft.configs.alike import (
    HiraConfig as HiraConfig,
)
from adaptome.peft.configs.alike import (
    HRAConfig as HRAConfig,
)
from adaptome.peft.configs.alike import (
    MissConfig as MissConfig,
)
from adaptome.peft.configs.alike import (
    PeanutConfig as PeanutConfig,
)
from adaptome.peft.configs.alike import (
    RoadConfig as RoadConfig,
)
from adaptome.peft.configs.alike import (
    ShiraConfig as ShiraConfig,
)
from adaptome.peft.configs.alike import (
    VBLoRAConfig as VBLoRAConfig,
)
from adaptome.peft.configs.alike import (
    WaveFTConfig as WaveFTConfig,
)
from adaptome.peft.configs.base import PeftConfig as PeftConfig
from adaptome.peft.configs.base import PeftType as PeftType
from adaptome.peft.configs.base import TaskType as TaskType
from adaptome.peft.configs.low_rank import (
    AdaLoraConfig as AdaLoraConfig,
)
from adaptome.peft.configs.low_rank import (
    LoHaConfig as LoHaConfig,
)
from adaptome.peft.configs.low_rank import (
    LoKrConfig as LoKrConfig,
)
from adaptome.peft.configs.low_rank import (
    LoraConfig as LoraConfig,
)
from adaptome.peft.configs.low_rank import (
    VeraConfig as VeraConfig,
)
from adaptome.peft.configs.orthogonal import BOFTConfig as BOFTConfig
from adaptome.peft.configs.orthogonal import OFTConfig as OFTConfig
from adaptome.peft.configs.own import AdaptomeConfig as AdaptomeConfig
from adaptome.peft.configs.prompts import PrefixTuningConfig as PrefixTuningConfig
from adaptome.peft.configs.prompts import PromptEncoderConfig as PromptEncoderConfig
from adaptome.peft.configs.prompts import PromptTuningConfig as PromptTuningConfig
from adaptome.peft.configs.scaled import FourierFTConfig as FourierFTConfig
from adaptome.peft.configs.scaled import IA3Config as IA3Config
from adaptome.peft.configs.scaled import LNTuningConfig as LNTuningConfig
