"""Sweeps: expand tables into runs, find the unfinished runs, and launch them."""
