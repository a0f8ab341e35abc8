"""Marks of tests that need what only some systems have."""

import sys

import pytest

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files and signals")
