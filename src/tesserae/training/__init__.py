"""The objective, the loop with its checkpoints, and the two trainers."""
