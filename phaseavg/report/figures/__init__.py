"""The paper's figures and others, each drawn from a frame that is written beside it."""
