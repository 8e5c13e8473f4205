"""Optical flow, and what moves along it."""
