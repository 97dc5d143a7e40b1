"""falkon."""
