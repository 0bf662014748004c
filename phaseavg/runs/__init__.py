"""What a run is called, what it leaves, and how it survives being killed."""
