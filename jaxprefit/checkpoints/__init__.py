"""The checkpoint format, readable without training code."""
