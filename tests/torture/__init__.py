"""Long commands under kills, and hostile hands under a watch: what takes too long for every run of the tests."""
