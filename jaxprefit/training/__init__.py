"""Gradients per family, one optimizer state per group of parameters, the loop that runs the step, saved runs."""
