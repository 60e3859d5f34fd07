"""`python -m benchmarks`: the speed suite."""

from benchmarks.speed import main

main()
