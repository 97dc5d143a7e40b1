"""The computer the work runs on."""
