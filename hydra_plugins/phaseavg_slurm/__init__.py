"""Hydra plugin for the launcher `slurm`, implemented in phaseavg/sweep/slurm.py."""
