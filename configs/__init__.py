"""One file per runnable setting; every leaf can be overridden on the command line, unknown keys are refused."""
