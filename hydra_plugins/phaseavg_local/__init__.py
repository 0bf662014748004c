"""Where Hydra finds the launcher `local`; all that it does is in phaseavg/sweep/launcher.py."""
