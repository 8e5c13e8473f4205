"""Noise levels and DDIM."""
