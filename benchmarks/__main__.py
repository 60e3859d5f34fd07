"""`python -m benchmarks`: the equal-time benchmark on the pictures in data/."""

from benchmarks.equal_time import main

main()
