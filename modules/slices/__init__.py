"""Slices of a clip in space and time, which an image model takes for pictures."""
