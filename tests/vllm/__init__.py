"""Tests against an installed vLLM: `make test-vllm` makes an environment for them. They take some minutes."""
