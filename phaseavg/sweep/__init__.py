"""Sweeps: the cells of the tables as runs, which of these are missing, and how to launch them."""
