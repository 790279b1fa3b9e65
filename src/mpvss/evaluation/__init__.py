"""Scores on data sets, their reports, and the benchmark."""
