"""Ways to look at representations."""
