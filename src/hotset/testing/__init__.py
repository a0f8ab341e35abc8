"""Devices that stand in for a GPU in tests."""
