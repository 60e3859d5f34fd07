"""What dvc.yaml calls: notebooks run as stages, what is checked before them, what a kill leaves repaired."""
