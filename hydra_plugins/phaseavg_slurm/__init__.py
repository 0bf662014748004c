"""Where Hydra finds the launcher `slurm`; all that it does is in phaseavg/sweep/slurm.py."""
