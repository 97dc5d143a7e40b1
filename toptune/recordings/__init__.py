"""Recordings of every kind, opened by content."""
