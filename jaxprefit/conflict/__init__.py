"""Gradient conflict between families: Gram matrices, measures, a probe with a reference level, a report."""
