"""GGUF files for llama.cpp: adapters both ways, and merged models."""
