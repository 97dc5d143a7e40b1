"""Frozen networks that describe pictures."""
