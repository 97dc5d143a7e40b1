"""Rows for a head."""
