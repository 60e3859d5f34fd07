"""The reference's side of the cases, a module for each kind: `prepare(plan) -> (Work, what ours is given)`."""
