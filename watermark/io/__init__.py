"""Files, records and prompts."""
