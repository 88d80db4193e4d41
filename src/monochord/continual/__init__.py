"""Tasks one after another: what comes back, what is kept, and what is forgotten."""
