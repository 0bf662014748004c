"""Phase-wise averaging of epoch-end weights, and the reproduction of the paper it comes from."""

__version__ = "0.1.0"
