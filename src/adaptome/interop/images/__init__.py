"""Adapter files of image models: diffusers', kohya's and LyCORIS' keys in one safetensors file, both ways."""
