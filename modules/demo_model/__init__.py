"""The demo model, which comes with the pack."""
