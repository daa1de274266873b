"""Before a test: how much it takes, positive controls, what to ask, where to read."""
