"""Training: the embedded default's recipe."""
