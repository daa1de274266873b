"""What stands behind a verdict, for others to read: the report."""
