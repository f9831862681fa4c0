"""From raw files to batches: records, readers, cached ArrayRecord data sets, tokenisation, mixtures."""
