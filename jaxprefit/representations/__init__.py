"""Hidden states layer by layer: similarity of encoders, linear probes, geometry."""
