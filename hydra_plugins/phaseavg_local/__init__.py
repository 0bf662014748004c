"""Hydra plugin for the launcher `local`, implemented in phaseavg/sweep/launcher.py."""
