"""The built-in landscapes: pictures with exact segmentation, depth and class, rendered at any size."""
