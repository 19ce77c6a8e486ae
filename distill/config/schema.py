"""The typed schema of a run: every key, its type, its default and its limits. The only place defaults live.

Imports neither torch nor Hydra, so that validation answers at once. YAML files under ``conf/`` state only what differs.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from distill.config.duration import Duration
from distill.config.schema_adm import Adm
from distill.config.schema_callbacks import Callbacks, Component
from distill.config.schema_lora import Lora
from distill.config.schema_online import Online
from distill.config.schema_reduction import VarianceReduction
from distill.config.schema_schedule import ScheduledAboveZero, ScheduledFraction, ScheduledFromZero
from distill.config.strict import Decay, Fraction, Name, Positive, Strict


class Model(Strict):
    """Where a model comes from.

    ``path`` is a local folder, a ``.gguf`` file, ``package://NAME[/SUBPATH]`` (a model shipped in an installed
    package) or a hub id; alternatively ``config`` builds one with random weights, seeded by the run.
    """

    path: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False
    allow_pickle: bool = False


class Student(Model):
    layers: list[int] | None = Field(None, description="layers to keep, by number from 0; the others are dropped")
    lora: Lora | None = None
    gradient_checkpointing: bool = False
    new_head: bool = Field(False, description="images: draw a head for the classes of the data, beside loaded weights")
    frozen_batch_norm: bool = Field(
        False, description="images: batch normalisation by the running statistics that are there, which stay"
    )


class Member(Model):
    """One of several teachers. ``weight`` is relative to those of the others."""

    weight: float = 1.0
    lora: Lora | None = Field(None, description="kind cotrained: an adapter learns, and the weights stay")


class Teacher(Model):
    """Who teaches. The keys of a model are those of kind `frozen`; `multi` has ``members``, `self` is the student.

    `cotrained` learns, too: one model, or ``members`` (docs/online_kd.md).
    """

    kind: Literal["none", "frozen", "cached", "multi", "self", "cotrained", "custom"] = "none"
    cache: str | None = Field(None, description="kind cached: the folder that `distill cache` wrote")
    custom: Component | None = Field(None, description="kind custom: your own class (docs/extending.md)")
    placement: Literal["replicated", "sharded", "offloaded"] = Field(
        "replicated", description="whole on every rank, in shards over the ranks, or in shards in CPU memory"
    )
    prompt: str | None = Field(
        None, description="what the teacher reads in place of the prompt: a template over the fields of a sample"
    )
    lora: Lora | None = Field(None, description="kind cotrained: an adapter learns, and the weights stay")
    # kind: multi, cotrained
    members: dict[str, Member] = Field(default_factory=dict, description="the teachers, by name")
    by: str | None = Field(None, description="the field of a row that names its teacher; null mixes all by weight")


class Task(Strict):
    """What is learned: the next token, the class of an image, or the class of every pixel."""

    name: Literal["causal_lm", "image_classification", "semantic_segmentation"] = "causal_lm"


class Source(Strict):
    """Examples of one source."""

    source: Literal[
        "arithmetic",
        "text",
        "reasoning_gym",
        "mixture",
        "digits",
        "fashion_mnist",
        "image_folder",
        "image_dataset",
        "scenes",
        "mask_folder",
        "mask_dataset",
    ] = "arithmetic"
    max_length: Positive = 2048
    too_long: Literal["refuse", "drop"] = Field("refuse", description="text: rows whose prompt does not fit")
    chat_template: bool = Field(False, description="wrap plain prompts as a user turn of the model's template")
    system_prompt: str | None = None
    limit: Positive | None = Field(None, description="train on so many rows; smaller parts lie inside of larger ones")
    fraction: float = Field(1.0, gt=0, le=1, description="train on this share of the rows, likewise")
    # source: arithmetic
    operator: Literal["+", "-", "*"] = "+"
    digits: int = Field(3, ge=1, le=6)
    prompt: str = "{a}{operator}{b}="
    # source: text
    path: str | None = None
    eval_path: str | None = None
    # source: reasoning_gym
    task: str | None = None
    size: Positive = 10_000
    options: dict[str, Any] = Field(default_factory=dict)
    # images
    image_size: Positive | None = Field(None, description="height and width of an image; null: as they are")
    channels: Literal[1, 3] | None = Field(None, description="grey or colour; null: as the source has them")
    mean: list[float] | None = Field(None, description="by channel, of a model that brings none; null: 0.5")
    std: list[float] | None = Field(None, description="likewise")
    pad_crop: int = Field(0, ge=0, description="black pixels around an image, from which a window is cut at random")
    flip: bool = Field(False, description="mirror half of the training images")
    image_column: str = Field("image", description="of a saved dataset: the column of images")
    label_column: str = Field("label", description="likewise, of class numbers or masks")
    classes: Positive | list[str] | None = Field(None, description="masks: names by number, or how many there are")


class Part(Source):
    """A part of a mixture."""

    weight: Positive = Field(1, description="its share of every optimizer step, over the sum of all weights")


class Data(Source):
    """Training and held-out examples. ``batch_size`` counts sequences per optimizer step over all ranks."""

    batch_size: Positive = 16
    eval_size: Positive = 256
    # source: mixture
    parts: dict[Name, Part] = Field(default_factory=dict, description="name → a source of its own, and its weight")


class Rollout(Strict):
    """How the sequences of a step come about. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off.

    A key that takes a schedule takes ``{start: …, end: …}`` in place of a number.
    """

    kind: Literal["dataset", "on_policy", "speculative", "custom"] = "dataset"
    temperature: ScheduledFromZero = 1.0
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_new_tokens: Positive = 256
    samples_per_prompt: Positive = 1
    on_policy_fraction: ScheduledFraction = 1.0
    batch_size: Positive = Field(256, description="rows decoded at once")
    custom: Component | None = Field(None, description="kind custom: your own class (docs/extending.md)")
    # kind: speculative
    draft_length: Positive = Field(5, description="tokens the student proposes before the teacher looks at them")
    accept_top_k: Positive = Field(25, description="a proposal stays if it is among so many of the teacher's likeliest")
    teacher_temperature: float = Field(0.2, ge=0, description="of the tokens the teacher puts in place of others")
    teacher_top_p: float = Field(0.5, gt=0, le=1, description="likewise")
    gather: Literal["auto", "model", "layers"] = Field(
        "auto", description="under ZeRO-3: the whole student once per rollout, or one layer at a time; auto plans"
    )


class Objective(Strict):
    """``label_weight``·CE + ``logit_weight``·divergence, per target position."""

    label_weight: float = Field(0.0, ge=0)
    logit_weight: float = Field(1.0, ge=0)
    divergence: Literal[
        "forward_kl",
        "reverse_kl",
        "jsd",
        "skew_forward_kl",
        "skew_reverse_kl",
        "total_variation",
        "topk_forward_kl",
        "topk_reverse_kl",
        "pearson",
        "spearman",
        "sampled_token",
        "custom",
    ] = "reverse_kl"
    beta: float = 0.5
    alpha: float = 0.1
    k: Positive = 32
    tail: Literal["bucket", "renormalise", "truncate"] = "bucket"
    topk_from: Literal["teacher", "student"] = "teacher"
    softness: float = Field(0.1, gt=0, description="of spearman's ranks, in standard deviations of the logits")
    ratio_clip: float | None = Field(None, gt=1)
    custom: Component | None = Field(None, description="divergence custom: your own function (docs/extending.md)")
    temperature: ScheduledAboveZero = 1.0
    scale_by_temperature_squared: bool = False
    chunk_size: Positive = Field(1024, description="target positions whose logits exist at once")


class Optimizer(Strict):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    momentum: Fraction = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)


class Trainer(Strict):
    """Lightning's part. ``micro_batch_size`` is the rows per forward pass on one rank; null means all of them.

    ``accelerator: auto`` takes a GPU where there is one. Under ZeRO `bf16-mixed` is bf16 weights with fp32 masters.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "cpu"
    strategy: Literal["single", "ddp", "zero1", "zero2", "zero3"] = "single"
    offload: bool = Field(False, description="with zero3: weights and optimizer state in CPU memory")
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    max_steps: Positive = 100
    startup_timeout: float = Field(1800.0, ge=1, description="seconds without progress before and after training")
    timeout: float = Field(600.0, ge=1, description="the same in training, and in a collective")
    max_time: Duration | None = Field(None, description="seconds or [D-]HH:MM:SS after which to save and stop")
    micro_batch_size: Positive | None = None
    gradient_clip_val: float | None = Field(1.0, gt=0)
    log_every_n_steps: Positive = 1
    deterministic: bool = True


class Logger(Strict):
    """``metrics.jsonl`` is always written; these come on top."""

    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "distill"
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    tags: list[str] = Field(default_factory=list)
    tensorboard: bool = False
    csv: bool = False
    progress: Literal["auto", "bar", "plain", "off"] = "auto"


class TrainConfig(Strict):
    """``distill train``."""

    seed: int = Field(0, ge=0, lt=2**31)
    resume: str | None = Field(None, description="null, auto, or the path of a checkpoint or run directory")
    run_name: Name = Field("opd", description="first part of the run directory's name")
    task: Task = Task()
    data: Data = Data()
    eval_data: Data | None = Field(None, description="where held-out examples come from; null: from data")
    student: Student = Student()
    teacher: Teacher = Teacher()
    rollout: Rollout = Rollout()
    objective: Objective = Objective()
    online: Online | None = Field(None, description="what networks that are trained together learn from each other")
    variance_reduction: VarianceReduction | None = Field(None, description="the teacher's gradient off the student's")
    adm: Adm | None = Field(None, description="feature terms beside the objective")
    optimizer: Optimizer = Optimizer()
    trainer: Trainer = Trainer()
    callbacks: Callbacks = Callbacks()
    logger: Logger = Logger()
    stages: dict[Name, dict[str, Any]] | None = Field(
        None, description="name → keys in which a stage differs; each starts from the student of the one before"
    )
    stages_order: Literal["given", "reversed", "mixed"] = Field(
        "given", description="how the stages run: one after the other, backwards, or as one run on all of their data"
    )


class EvalConfig(Strict):
    """``distill eval``: accuracy of one checkpoint, and its KL to a teacher when one is given.

    Sections left at null are those of the run when ``checkpoint`` is a run directory, else the defaults.
    """

    checkpoint: str = Field(description="run directory or Hugging Face folder")
    out: str | None = None
    seed: int = Field(0, ge=0, lt=2**31)
    task: Task | None = None
    data: Data | None = None
    teacher: Teacher | None = None
    rollout: Rollout | None = None


class ReportConfig(Strict):
    """``distill report``: one HTML page about one or more run directories."""

    runs: list[str] = Field(min_length=1, description="run directories, sweeps, folders of runs, or patterns (*)")
    out: str | None = Field(None, description="HTML file; null: report.html of one run, compare.html above several")
