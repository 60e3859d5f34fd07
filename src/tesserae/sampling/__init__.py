"""Drawing code maps from a transformer: filters, the cached sampler, completion."""
