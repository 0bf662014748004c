"""The averager as a callback of other training loops; each module needs its own package."""
