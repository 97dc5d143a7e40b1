"""Spikes from voltage."""
