"""PEFT's interface on adaptome's methods: a script written for PEFT runs by changing one import.

    from adaptome.peft import LoraConfig, get_peft_model
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))

Signatures, semantics and the files' keys are PEFT's for the types that both have; `AdaptomeConfig(method=...)` is any method of ours. What
differs: a layer is not replaced by one with a `base_layer`, the model's own classes and keys stay, and a model with a prompt returns the tokens' outputs alone.
"""

from adaptome.peft.attaching import prepare_model_for_kbit_training
from adaptome.peft.config import (
    AdaLoraConfig,
    AdaptomeConfig,
    BOFTConfig,
    FourierFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftType,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    VeraConfig,
)
from adaptome.peft.model import (
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)

__all__ = [
    "AdaLoraConfig", "AdaptomeConfig", "BOFTConfig", "FourierFTConfig", "IA3Config", "LNTuningConfig", "LoHaConfig", "LoKrConfig", "LoraConfig", "OFTConfig",
    "PeftConfig", "PeftModel", "PeftModelForCausalLM", "PeftModelForFeatureExtraction", "PeftModelForQuestionAnswering", "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification", "PeftModelForTokenClassification", "PeftType", "PrefixTuningConfig", "PromptEncoderConfig",
    "PromptTuningConfig", "TaskType", "VeraConfig", "get_peft_model", "get_peft_model_state_dict", "inject_adapter_in_model", "prepare_model_for_kbit_training", "set_peft_model_state_dict",
]  # fmt: skip
