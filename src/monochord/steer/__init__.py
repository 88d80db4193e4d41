"""Directions in activations, and ways to move along them."""
