"""Statistics: numpy and scipy only, no files, no models."""
