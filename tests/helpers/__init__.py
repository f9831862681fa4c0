"""What several tests share: tiny runs, simulated gradients, independent references, paths."""
