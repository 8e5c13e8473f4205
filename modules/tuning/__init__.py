"""One-shot tuning of a clip model, and what it learns."""
