"""Raw folder -> prepared set -> batches and code maps."""
