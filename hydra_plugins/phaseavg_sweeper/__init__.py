"""Where Hydra finds the sweeper `phaseavg`; all that it does is in phaseavg/sweep."""
