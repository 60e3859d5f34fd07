"""What a model is worth: codebook statistics, image metrics, neighbours."""
