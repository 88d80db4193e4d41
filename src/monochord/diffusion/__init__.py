"""Diffusion models: sampling from them, and what is done to them."""
