"""Changes of a model's own weights: which of them carry a skill, and how to move it."""
