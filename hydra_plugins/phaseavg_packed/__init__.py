"""Where Hydra finds the launcher `packed`; all that it does is in phaseavg/sweep/packing.py."""
