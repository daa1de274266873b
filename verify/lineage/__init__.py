"""What happened to the teacher: the plan, the tests and the verdict of all."""
