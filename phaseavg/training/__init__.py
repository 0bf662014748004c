"""The training of one run: state, loop, evaluation."""
