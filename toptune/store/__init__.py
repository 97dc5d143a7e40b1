"""The store of features."""
