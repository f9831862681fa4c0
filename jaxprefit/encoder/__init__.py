"""The encoder, which knows nothing of tasks: plain dict trees, LoRA as a variable collection, Hugging Face weights."""
