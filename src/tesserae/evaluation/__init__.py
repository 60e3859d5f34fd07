"""Metrics: reconstructions, codebook, likelihood, sets of pictures, condition fidelity, copies."""
