"""Running a function on every rank of a small local job; `hetcomm.testing.run_ranks` is its public face."""
