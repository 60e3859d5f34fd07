"""The networks of the paper: VQGAN, patch discriminator, perceptual loss, latent transformer."""
