"""Simulated cultures."""
