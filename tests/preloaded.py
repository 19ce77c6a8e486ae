"""All that a run imports. ``tests.processes`` forks its processes from one that has imported this."""

from __future__ import annotations

import gc
import pkgutil
from importlib import import_module

import deepspeed  # noqa: F401

# Its first engine imports torch's compiler by this.
from deepspeed.runtime.zero.muon import muon_optimizer  # noqa: F401
from transformers.models.convnext import modeling_convnext  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401
from transformers.models.resnet import modeling_resnet  # noqa: F401
from transformers.models.vit import modeling_vit  # noqa: F401

import distill
from tests import pictures

pictures.leave_out()
for module in pkgutil.walk_packages(distill.__path__, "distill."):
    # That of Parquet starts a thread, which a fork would not have.
    if not module.name.endswith(("__main__", ".parquet")):
        import_module(module.name)
# DeepSpeed collects garbage at every start, which takes as long as a tiny run where so much is imported.
gc.collect()
gc.freeze()
