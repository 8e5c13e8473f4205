"""Clips that were edited frame by frame, steadied."""
