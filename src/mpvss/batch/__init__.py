"""Many videos, several workers, and long videos in chunks: each finished exactly once."""
