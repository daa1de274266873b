"""Fingerprints that need no watermark: weights, agreement with controls, keyed answers, random-half canaries."""
