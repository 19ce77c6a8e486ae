"""When the callback measures, what it records, and that it leaves the student alone."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from distill.analysis.naming import place
from distill.analysis.sparsity import LABELS, compare, total_pair
from distill.callbacks.sparsity import KEYS, UpdateSparsity
from distill.callbacks.sparsity_record import COLUMNS
from distill.errors import RunError, UserError


class Module(L.LightningModule):
    def __init__(self, model: Any, lr: float = 1e-4) -> None:
        super().__init__()
        self.student, self.lr = model, lr
        self.lm = SimpleNamespace(model=model)
        self.records: dict[int, dict[str, float]] = {}

    def record(self, metrics: dict[str, float]) -> None:
        self.records.setdefault(self.global_step, {}).update(metrics)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.student(batch, labels=batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr, weight_decay=0)


def llama(hidden: int = 8) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=hidden,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def fit(module: Module, callback: UpdateSparsity, max_steps: int, **options: Any) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    data = torch.randint(0, 11, (64, 6), generator=torch.Generator().manual_seed(0))
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def test_measures_once_per_multiple_and_at_the_end(source: Path) -> None:
    module = Module(llama())
    fit(module, UpdateSparsity(source, 2), 5, accumulate_grad_batches=3)
    assert list(module.records) == [2, 4, 5]
    assert module.records[5]["update/relative_norm_fp32"] > module.records[2]["update/relative_norm_fp32"] > 0


def keys(names: Iterable[str]) -> set[str]:
    """What is recorded of a student with parameters of these names."""
    prefixes = ("sparsity", "sparsity_null", "sparsity_since_last")
    found = {f"{prefix}/{row}/{label}" for prefix in prefixes for row in ("bf16", "fp32") for label in LABELS}
    found |= {f"{prefix}/relative_norm{end}" for prefix in ("update", "update_since_last") for end in ("", "_fp32")}
    places = [place(name) for name in names]
    scopes = {f"group/{where.group}" for where in places}
    scopes |= {f"layer/{where.layer}" for where in places if where.layer is not None}
    found |= {
        f"{prefix}/{scope}" for prefix in (*prefixes, "update/relative_norm", "update/energy") for scope in scopes
    }
    modules = {f"sparsity/module/{where.layer}.{where.module}" for where in places if where.layer is not None}
    return found | modules | {"time/sparsity"}


def test_records_what_it_documents(source: Path, tmp_path: Path) -> None:
    module = Module(llama())
    fit(module, UpdateSparsity(source, 1, tmp_path / "sparsity", since_last=True), 1)
    record = module.records[1]
    assert set(record) == keys(name for name, _ in module.student.named_parameters())
    patterns = [re.sub("[A-Z]{3,}", "[^/]+", key.replace(".", r"\.")) for key in KEYS]
    for key in record:
        assert any(re.fullmatch(pattern, key) for pattern in patterns), key
    for pattern in patterns:
        assert any(re.fullmatch(pattern, key) for key in record), pattern
    assert "sparsity/bf16/1e-5" in record
    assert "sparsity/module/1.q_proj" in record
    assert "sparsity/group/lm_head" not in record


def test_numbers_are_those_of_the_weights(source: Path) -> None:
    module = Module(llama(), lr=3e-4)
    fit(module, UpdateSparsity(source, 50), 3)
    start = dict(llama().named_parameters())
    pairs = {name: compare(start[name], value) for name, value in module.student.named_parameters()}
    whole, record = total_pair(pairs.values()), module.records[3]
    assert 0 < record["sparsity/bf16/1e-4"] < 1
    for label in ("0", "1e-8", "1e-7", "1e-6", "1e-5", "1e-4"):
        assert record[f"sparsity/bf16/{label}"] == whole["bf16"].sparsity(float(label))
        assert record[f"sparsity/fp32/{label}"] == whole["fp32"].sparsity(float(label))
    assert record["update/relative_norm"] == pytest.approx(whole["bf16"].relative_norm, rel=1e-12)
    assert record["sparsity/module/1.up_proj"] == pairs["model.layers.1.mlp.up_proj.weight"]["bf16"].sparsity()
    assert record["sparsity/group/embedding"] == pairs["model.embed_tokens.weight"]["bf16"].sparsity()
    shares = [value for key, value in record.items() if key.startswith("update/energy/group/")]
    assert sum(shares) == pytest.approx(1)


def test_an_untrained_student_is_fully_sparse(source: Path) -> None:
    module = Module(llama(), lr=0.0)
    fit(module, UpdateSparsity(source, 1), 1)
    assert module.records[1]["sparsity/fp32/0"] == 1
    assert module.records[1]["update/relative_norm_fp32"] == 0


def test_resuming_does_not_repeat_a_measurement(source: Path) -> None:
    """Micro-batches after a resume still show the step that was measured before the interruption."""
    module, callback = Module(llama()), UpdateSparsity(source, 2)
    trainer: Any = SimpleNamespace(global_step=2, max_steps=9, should_stop=False, is_global_zero=True, loggers=[])
    module.trainer = trainer
    callback.setup(trainer, module, "fit")
    callback.on_train_start(trainer, module)
    callback.on_train_batch_end(trainer, module, None, None, 0)
    assert module.records == {}
    trainer.global_step = 4
    callback.on_train_batch_end(trainer, module, None, None, 1)
    assert list(module.records) == [4]


def test_a_lora_student_is_measured_as_merged(source: Path) -> None:
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    module = Module(model, lr=1e-2)
    fit(module, UpdateSparsity(source, 50), 2)
    merged = dict(model.merge_and_unload().named_parameters())
    whole = total_pair(compare(value, merged[name]) for name, value in llama().named_parameters())
    record = module.records[2]
    assert record["sparsity/bf16/1e-5"] == whole["bf16"].sparsity() < 1
    assert record["sparsity/group/embedding"] == record["sparsity/group/norm"] == 1
    assert record["update/relative_norm_fp32"] == pytest.approx(whole["fp32"].relative_norm, rel=1e-12)


def test_tables_hold_every_precision_tolerance_and_part(source: Path, tmp_path: Path) -> None:
    module = Module(llama())
    fit(module, UpdateSparsity(source, 1, folder=tmp_path / "sparsity"), 2)
    assert sorted(path.name for path in (tmp_path / "sparsity").iterdir()) == ["step_000001.csv", "step_000002.csv"]
    with (tmp_path / "sparsity" / "step_000002.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    cells = {(row["scope"], row["name"], row["precision"]): row for row in rows}
    assert len(cells) == len(rows)
    record = module.records[2]
    assert float(cells["model", "all", "fp32"]["sparsity_1e-6"]) == record["sparsity/fp32/1e-6"]
    assert float(cells["module", "0.q_proj", "bf16"]["sparsity_1e-5"]) == record["sparsity/module/0.q_proj"]
    assert float(cells["layer", "1", "bf16"]["energy_share"]) == record["update/energy/layer/1"]


def test_a_checkpoint_with_buffers_matches_its_live_model(tmp_path: Path) -> None:
    def dots() -> PreTrainedModel:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 12, "moe_intermediate_size": 8, "vocab_size": 11}
        sizes |= {"n_shared_experts": 1}
        experts = {"n_routed_experts": 2, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1}
        heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
        config = AutoConfig.for_model("dots1", **sizes, **experts, **heads, first_k_dense_replace=1)
        return AutoModelForCausalLM.from_config(config)

    dots().save_pretrained(tmp_path / "source", save_original_format=False)
    module = Module(dots())
    fit(module, UpdateSparsity(tmp_path / "source", 1), 1)
    assert module.records[1]["sparsity/module/1.e_score_correction_bias"] == 1.0


def test_a_signal_brings_no_measurement_that_the_uninterrupted_run_does_not_have(source: Path) -> None:
    module, callback = Module(llama()), UpdateSparsity(source, 4)
    trainer: Any = SimpleNamespace(global_step=3, max_steps=9, should_stop=True, is_global_zero=True, loggers=[])
    callback.setup(trainer, module, "fit")
    callback.on_step(trainer, module, 3)
    assert module.records == {}


def test_another_architecture_is_refused_before_the_first_step(source: Path) -> None:
    with pytest.raises(UserError, match=r"`callbacks\.sparsity` must be .*mis-shaped"):
        fit(Module(llama(hidden=16)), UpdateSparsity(source, 1), 1)


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        fit(Module(llama()), UpdateSparsity(tmp_path / "nowhere", 1), 1)


def test_nan_names_the_tensor_and_the_step(source: Path) -> None:
    module, callback = Module(llama()), UpdateSparsity(source, 2)
    trainer: Any = SimpleNamespace(global_step=2, max_steps=9, should_stop=False, is_global_zero=True, loggers=[])
    callback.setup(trainer, module, "fit")
    with torch.no_grad():
        module.student.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*step 2"):
        callback.on_step(trainer, module, 2)
