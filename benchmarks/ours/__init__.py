"""This project's side of the cases, a module for each kind: `prepare(plan, given) -> Work`, or None for no row."""
