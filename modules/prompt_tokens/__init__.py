"""Prompt adapters: tokens learned on one clip."""
