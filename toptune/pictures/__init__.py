"""Pictures of sliding windows."""
