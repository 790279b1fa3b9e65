"""Many videos, several workers, and long videos in segments: each finished exactly once."""
