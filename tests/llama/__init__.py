"""Tests with an installed llama-cpp-python: `make test-llama` compiles it, which takes some ten minutes."""
