"""Callbacks for Lightning and Hugging Face's Trainer; each module needs its own package."""
