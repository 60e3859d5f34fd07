"""Weights from and for other code: the reference implementation's checkpoints."""
