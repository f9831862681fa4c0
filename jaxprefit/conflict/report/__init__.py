"""The conflict report: what was measured, the verdict in words, the page with its figures."""
