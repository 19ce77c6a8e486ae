"""DeepSpeed ZeRO under Lightning, on GPUs and on CPU processes, without a compiled op.

Lightning's strategy is written for GPUs and divides the loss by the accumulated micro-batches a second time; what it
overrides here says why. DeepSpeed is imported only where ZeRO is asked for.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.environments import (  # type: ignore[attr-defined]
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor, nn

from distill import distributed, resharding, sharding
from distill.errors import UserError
from distill.models import batch_statistics

BUCKET = 50_000_000
"""Elements DeepSpeed reduces or gathers at once, if the model has as many: it allocates the buffer in full."""


def build(options: dict[str, Any], model: Any, *beside: nn.Module) -> dict[str, Any]:
    """Lightning's arguments about devices and strategy, from the section ``trainer`` of a configuration.

    Several processes come from a launcher; ``model`` is the one to be trained, together with those ``beside`` it.
    """
    world = distributed.world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    gpu, name = on_gpu(options), options["strategy"]
    strategy: Strategy | str = "auto"
    if name == "ddp":
        strategy = DDPStrategy(process_group_backend="nccl" if gpu else "gloo")
    elif is_zero(options):
        strategy = ZeroStrategy(
            config(
                int(name.removeprefix("zero")),
                on_gpu=gpu,
                offload=options["offload"],
                bf16=trains_in_bf16(options),
                numel=sum(parameter.numel() for one in (model, *beside) for parameter in one.parameters()),
                hidden_size=_width(model.config.get_text_config()),
            ),
            on_gpu=gpu,
        )
    devices = 1 if name == "single" else local
    return {
        "accelerator": "gpu" if gpu else "cpu",
        "devices": devices,
        "num_nodes": world // local,
        "strategy": strategy,
        # A DeepSpeed engine reads and writes by itself.
        "plugins": [environment(), *([] if is_zero(options) else [resharding.AnyCheckpointIO()])],
    }


def _width(config: Any) -> int:
    """The hidden width of a model; of one that widens from stage to stage, the last one's."""
    widths: list[int] = getattr(config, "hidden_sizes", None) or [getattr(config, "hidden_size", 1024)]
    return widths[-1]


def environment() -> ClusterEnvironment:
    """A launcher's ranks are what its variables say. Lightning would take any SLURM job for one of srun's tasks, wait
    for the others and requeue the job by itself.
    """
    return TorchElasticEnvironment() if "WORLD_SIZE" in os.environ else LightningEnvironment()


def on_gpu(options: dict[str, Any]) -> bool:
    """Whether the section ``trainer`` means GPUs here."""
    wanted: str = options["accelerator"]
    return bool(torch.cuda.is_available()) if wanted == "auto" else wanted == "gpu"


def trains_in_bf16(options: dict[str, Any]) -> bool:
    """Whether the student's weights are bf16: `bf16-true`, and `bf16-mixed` under ZeRO, where masters are fp32."""
    precision: str = options["precision"]
    return precision == "bf16-true" or (precision == "bf16-mixed" and is_zero(options))


def check_bf16(options: dict[str, Any], model: nn.Module) -> None:
    """Refuses bf16 weights beside running statistics, which stay fp32: batch normalisation takes no such mixture.

    Raises:
        UserError: named ``trainer.precision``.
    """
    if batch_statistics.layers(model):
        way = "'32-true' under ZeRO" if is_zero(options) else "'32-true' or 'bf16-mixed'"
        allowed = f"{way} for a model that normalises by batch statistics"
        raise UserError("trainer.precision", options["precision"], allowed)


def is_zero(options: dict[str, Any]) -> bool:
    """Whether the section ``trainer`` means DeepSpeed."""
    name: str = options["strategy"]
    return name.startswith("zero")


def config(stage: int, *, on_gpu: bool, offload: bool, bf16: bool, numel: int, hidden_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a training engine.

    ``numel`` counts the model's parameters. Vectors (up to ten times ``hidden_size`` elements, as in transformers'
    integration) stay gathered under ZeRO-3: fetching each norm by itself would cost more than its memory.
    """
    bucket = min(BUCKET, numel)
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": on_gpu and not offload,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": bucket,
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    if offload:
        pinned = {"device": "cpu", "pin_memory": on_gpu}
        zero |= {"offload_optimizer": pinned, "offload_param": dict(pinned)}
    return {
        "zero_optimization": zero,
        # torch's optimizers: DeepSpeed's own are compiled on first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16},
        # Not in the weights' type: a sum of many micro-batches in bf16 loses the late ones.
        "data_types": {"grad_accum_dtype": "fp32"},
        "train_micro_batch_size_per_gpu": 1,
    }


def choose_accelerator(options: dict[str, Any]) -> None:
    """Tells DeepSpeed, before anything imports it (as accelerate does), when the section ``trainer`` means the CPU."""
    if not on_gpu(options):
        os.environ["DS_ACCELERATOR"] = "cpu"


def prepare() -> None:
    """Settings that DeepSpeed reads when it is first used."""
    import deepspeed

    # Otherwise the first collective on CPU compiles a shared-memory library.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logging.logger.setLevel(logging.ERROR)


def _check_head(lm: Any) -> None:
    """DeepSpeed gathers for every call of a module, and ranks have different numbers of chunks to call the head for.

    Raises:
        UserError: the student's head is a module that has to be called.
    """
    head = getattr(lm.head, "module", None)
    if head is not None and type(head) is not nn.Linear:
        allowed = "at most 'zero2' for a student whose output embedding is no plain linear layer (LoRA on it, for one)"
        raise UserError("trainer.strategy", "zero3", allowed)


class OwnDtypes(DeepSpeedPrecision):
    """Leaves weights and batches in the dtypes they have; DeepSpeed's configuration says what is bf16."""

    def __init__(self) -> None:
        super().__init__("32-true")

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def convert_input(self, data: Any) -> Any:
        return data


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO-1, 2 and 3 with the gradients of one process on the whole batch."""

    def __init__(self, config: dict[str, Any], *, on_gpu: bool) -> None:
        prepare()
        backend = "nccl" if on_gpu else "gloo"
        super().__init__(
            config=config, logging_level=logging.ERROR, process_group_backend=backend, precision_plugin=OwnDtypes()
        )
        self.on_gpu = on_gpu

    @property
    def stage(self) -> int:
        assert isinstance(self.config, dict)
        return int(self.config["zero_optimization"]["stage"])

    def setup_environment(self) -> None:
        if self.on_gpu:
            super().setup_environment()
        else:
            # Past the check for a GPU.
            super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        if self.on_gpu:
            super().setup_distributed()
        else:
            # Past the check of GPU indices.
            self.set_world_ranks()
            self._init_deepspeed_distributed()

    def init_deepspeed(self) -> None:
        # Without the warning about gradient clipping: DeepSpeed clips, and the module knows.
        assert self.model is not None
        self._initialize_deepspeed_train(self.model)

    def _setup_model_and_optimizer(
        self, model: Any, optimizer: torch.optim.Optimizer | None, lr_scheduler: Any = None
    ) -> tuple[Any, Any]:
        import deepspeed

        if self.stage == 3:
            for network in model.networks:
                _check_head(network)
            sharding.cut(model, self.config)
        engine, zero_optimizer, _, _ = deepspeed.initialize(
            # DeepSpeed refuses a rank without a device index, as a CPU process is.
            args=argparse.Namespace(**({"device_rank": self.root_device.index} if self.on_gpu else {})),
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        if self.stage == 3:
            for parameter in model.loss.head:
                deepspeed.zero.register_external_parameter(model.loss, parameter)
        return engine, zero_optimizer

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        # Lightning has divided by the accumulated micro-batches already.
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(self, optimizer: Any, closure: Any, model: Any = None, **kwargs: Any) -> Any:
        engine = self.deepspeed_engine
        module: Any = self.lightning_module
        boundary, rates = engine.is_gradient_accumulation_boundary(), module.rates(optimizer)
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        if boundary:
            # DeepSpeed computes the norm on its way to the step.
            module.record({"grad_norm": engine.get_global_grad_norm(), **rates})
        return result

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        engine, path = self.deepspeed_engine, Path(checkpoint_path)
        own = resharding.is_own(engine, path)
        state = super().load_checkpoint(path, weights_only) if own else resharding.restore(engine, path)
        # DeepSpeed steps whenever its count of micro-batches divides, and a resumed run may have other ones.
        engine.micro_steps = state["global_step"] * engine.gradient_accumulation_steps()
        return state
