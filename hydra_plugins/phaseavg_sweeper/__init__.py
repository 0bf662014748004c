"""Hydra plugin for the sweeper `phaseavg`, implemented in phaseavg/sweep."""
