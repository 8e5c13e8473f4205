"""Safetensors files, and the folders where they lie."""
