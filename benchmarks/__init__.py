"""Speed, memory and quality beside the reference implementation; see README.md."""
