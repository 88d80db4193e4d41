"""Models of neurons and of the codes they read, exact and trainable."""
