"""The model families, as a table."""
