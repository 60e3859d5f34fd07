"""Sampling code maps from a transformer: filters, the KV cache, completion, large maps, and pictures of them."""
