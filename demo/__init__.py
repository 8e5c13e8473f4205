"""The demonstration: a drawn world, a tiny text-to-image model trained on it, and judges."""
