"""Run folders, checkpoints, shared prefixes and records."""
