"""One cell of experiments.scaling: the training step of one encoder on so many simulated devices, compiled, never run.

All arrays but the tokenizer's are abstract. The step is the one that experiments.prefinetune runs: both families, their
own LoRAs, clipping, Gram matrices, AdamW.
"""

import dataclasses
import functools
import math
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments.common import assembly, family_data
from experiments.common.start import generated_tokenizer
from jaxprefit import strategies, surgery
from jaxprefit.data.packing import Layout
from jaxprefit.encoder import lora
from jaxprefit.encoder.huggingface import Pretrained
from jaxprefit.encoder.transformer import Encoder, EncoderConfig, init_backbone
from jaxprefit.families import Family
from jaxprefit.families.mixture import collate
from jaxprefit.runtime.sharding import ROWS, hidden_rows, make_mesh, shardings
from jaxprefit.training import optim, train_step

OPTIONS = {
    "xla_backend_optimization_level": 0,  # of machine code, which is never run
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",  # as an accelerator's compiler orders a program
}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


def measure(config: ConfigDict, model: str, workdir: pathlib.Path) -> dict[str, Any]:
    """What one step costs on all devices that this process sees; numbers are those of one device."""
    s, chips = config.scaling, jax.device_count()
    layers, hidden, heads = s.models[model]
    shape = s.layouts[model][str(chips)]
    mesh = make_mesh(0, *shape)
    encoder = EncoderConfig(s.vocab, hidden, layers, heads, 4 * hidden)
    step, state, batches = abstract_step(config, encoder, mesh, workdir)
    began = time.perf_counter()
    compiled = step.lower(state, batches).compile(compiler_options=OPTIONS)
    seconds = time.perf_counter() - began
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    sizes = {part: getattr(memory, f"{part}_size_in_bytes") for part in ("argument", "output", "alias", "temp")}
    rows = {name: batch["input_ids"].shape[0] for name, batch in batches.items()}
    return {
        "model": model,
        "chips": chips,
        "mesh": dict(mesh.shape),
        "parameters": sum(math.prod(p.shape) for p in state.params.values()),
        "rows": rows,
        "tokens": sum(math.prod(batch["input_ids"].shape) for batch in batches.values()),
        "flops": cost["flops"],
        "model_flops": sum(matmul_flops(encoder, n, config.data[f].row_length) for f, n in rows.items()) / chips,
        "bytes_accessed": cost["bytes accessed"],
        "memory": {**sizes, "peak": sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]},
        "collectives": collectives(compiled.as_text(), chips),
        "seconds_to_compile": round(seconds, 1),
        "jax": jax.__version__,
    }


def abstract_step(
    config: ConfigDict, encoder: EncoderConfig, mesh: Mesh, workdir: pathlib.Path
) -> tuple[Any, Any, Any]:
    """(jitted step, its state, its batches), the two as shapes with shardings."""
    cache = family_data.cache_folder(config, workdir)
    tokenizer = generated_tokenizer(config.model.vocab, cache)
    data = family_data.load(config, tokenizer, cache)
    families = {name: d.family for name, d in data.items()}
    strategy = strategies.make(config.strategy, families, [c for f in families.values() for c in f.constants])
    spec, key = assembly.lora_spec(config), jax.random.key(0)
    params = {
        "backbone": jax.eval_shape(functools.partial(init_backbone, encoder), key),
        "lora": {a: jax.eval_shape(functools.partial(lora.init_lora, spec, encoder), key) for a in strategy.adapters},
        "head": {name: head(family, encoder, tokenizer) for name, family in families.items()},
    }
    optimizer = optim.OptimizerConfig(**config.optimizer.to_dict())
    aggregate = surgery.get(config.aggregator, config.aggregator_scope, config.aggregator_decay)
    tx = optim.make_optimizer(strategy, flatten_dict(params, sep="/"), optimizer)
    state = jax.eval_shape(
        lambda p: train_step.init_state(p, tx, train_step.init_surgery(strategy, p, aggregate)), params
    )
    lie = shardings(mesh, state)
    setup = train_step.Setup(Encoder(encoder, config.run.remat, hidden_rows(mesh)), families, strategy, {})
    step = train_step.make_step(setup, tx, optimizer, aggregate, mesh, key, shardings=lie)
    rows = {name: config.scaling[f"{name}_rows"] * mesh.size for name in families}
    batches = {name: batch(config, d, rows[name], mesh) for name, d in data.items()}
    return step, jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, lie), batches


def head(family: Family, encoder: EncoderConfig, tokenizer: Any) -> Any:
    """Shapes of the family's head, which depend on the encoder's width and not on its depth."""
    shallow = dataclasses.replace(encoder, num_layers=1, vocab_size=max(tokenizer.get_vocab().values()) + 1)
    start = Pretrained(shallow, init_backbone(shallow, jax.random.key(0)), tokenizer)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), family.init_head(jax.random.key(0), start))


def batch(config: ConfigDict, data: family_data.FamilyData, rows: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the family's batch of so many rows."""
    name, some = data.train[0]
    examples = [data.family.encode_record(some[i], name) for i in range(4)]
    layout = Layout.of(rows, config.data[data.family.name].row_length)
    arrays = collate(data.family, examples, layout)[1]
    lie = NamedSharding(mesh, PartitionSpec(ROWS))
    return {key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lie) for key, x in arrays.items()}


def matmul_flops(encoder: EncoderConfig, rows: int, length: int) -> float:
    """Of the layers' matrix products, forward and backward, for so many rows: the backward pass does two for one."""
    maps = 4 * encoder.hidden_size**2 + 2 * encoder.hidden_size * encoder.intermediate_size
    attention = 2 * length * encoder.hidden_size
    return 3.0 * 2.0 * rows * length * encoder.num_layers * (maps + attention)


def collectives(program: str, devices: int) -> dict[str, dict[str, float]]:
    """Kind -> `count`, `bytes` (of the whole result, or for reduce-scatter of the operand) and `sent` by each device on
    a ring, of the collective operations in a compiled program's text. One in a loop counts once."""
    out = {kind: {"count": 0, "bytes": 0.0, "sent": 0.0} for kind in KINDS}
    for kind, size, group in _found(program, devices):
        whole = size * group if kind == "reduce-scatter" else size
        factor = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0}.get(kind, (group - 1) / group)
        for key, value in (("count", 1), ("bytes", whole), ("sent", factor * whole)):
            out[kind][key] += value
    return out


def _found(program: str, devices: int) -> Iterator[tuple[str, int, int]]:
    """(kind, bytes of the result, devices in a group) of each collective operation."""
    for line in program.splitlines():
        match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
        if not match:
            continue
        shapes = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", match[1])
        if match[3] and len(shapes) > 1:  # operands, then results
            shapes = shapes[len(shapes) // 2 :]
        size = sum(SIZES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in shapes)
        listed = re.search(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])", line)
        group = devices if not listed else int(listed[2]) if listed[2] else len(listed[1].split(","))
        yield match[2], size, group
