"""Edits whose attention follows the source's."""
