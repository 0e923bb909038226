"""The same executable, run by a person."""
