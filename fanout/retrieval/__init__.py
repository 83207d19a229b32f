"""Passages for prompts: their index, which workers map into memory, and how prompts have them."""
