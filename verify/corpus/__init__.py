"""Text beyond memory: a verdict on a corpus, on each source and on each document."""
