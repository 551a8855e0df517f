"""The mechanism: adapters around frozen layers. Needs torch and safetensors, nothing heavier."""
