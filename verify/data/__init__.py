"""What a suspect said, as arrays: outputs, log probabilities, pairs, counts of contexts."""
