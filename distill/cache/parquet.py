"""The content of a cache as Parquet, for programs that do not read safetensors."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.cache.manifest import Manifest, drafted

FOLDER = "parquet"


def export(folder: Path, manifest: Manifest) -> None:
    """One file per shard, one line per target position; a file that is there already is left alone.

    Columns: ``sample_id``, ``position`` (number of the target in its sample), ``tokens`` and ``logprobs`` (lists),
    ``target_logprob``, ``log_rest``, ``drawn`` (list). The manifest's provenance is the schema's metadata.
    """
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    for name in manifest.shards:
        path = (target / name).with_suffix(".parquet")
        if not path.exists():
            table = _table(load_file(folder / name))
            draft = drafted(path)
            pq.write_table(table.replace_schema_metadata({"distill": repr(manifest.provenance)}), draft)
            draft.replace(path)


def _table(shard: dict[str, Tensor]) -> pa.Table:
    sizes = torch.diff(shard["ends"], prepend=torch.zeros(1, dtype=torch.long))
    columns = {
        "sample_id": shard["sample_ids"].repeat_interleave(sizes).numpy(),
        "position": torch.cat([torch.arange(int(size)) for size in sizes]).numpy(),
        "tokens": _lists(shard["tokens"].to(torch.int32)),
        "logprobs": _lists(shard["logprobs"].float()),
        "target_logprob": shard["target_logprobs"].numpy(),
        "log_rest": shard["log_rest"].numpy(),
        "drawn": _lists(shard["drawn"].to(torch.int32)),
    }
    return pa.table(columns)


def _lists(values: Tensor) -> pa.Array:
    """``[n, K]`` as n lists."""
    ends = pa.array(range(0, values.numel() + 1, values.shape[1]) if values.shape[1] else [0] * (len(values) + 1))
    return pa.LargeListArray.from_arrays(ends.cast(pa.int64()), values.reshape(-1).numpy())
