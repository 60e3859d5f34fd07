"""A package, so that `tests` means this folder wherever another distribution brings one of that name."""
