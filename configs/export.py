"""Exports for other libraries: what is written beside the encoder and its adapters.

python -m experiments.export --checkpoint=RUN --format=onnx --output=DIR
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.run.compilation_cache = False  # nothing is written beside the output
    c.export = ConfigDict()
    c.export.merged = False  # huggingface, sentence_transformers: also each adapter merged into the weights
    c.export.split = False  # onnx, int8: also the layers below all adapters (trunk.onnx) and the rest (top.onnx)
    c.export.table_bits = 8  # int8: of the word table, 8 or 4
    c.export.activations = False  # int8: also what enters a matrix, with a scale per token: faster, less exact
    c.export.max_length = 0  # tokens of a text; longer ones are cut; 0: as many as the encoder's own files say
    c.export.normalize = False  # sentence vectors to length 1, whatever the encoder's own files say
    c.export.texts = 64  # compared with JAX
    c.export.repetitions = 20  # of each time; 0: none is taken
    return c
