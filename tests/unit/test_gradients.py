"""Gradients of blocks against gradients written out, in fp64; and that nothing else moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill import tasks, training
from distill.analysis.variance import Blocks, moments, sketch_error
from distill.gradients import BlockGradients
from distill.models.causal_lm import padded_logits
from distill.types import Sample
from tests import tiny

CPU = torch.device("cpu")
ALL = 10_000
"""More buckets than the tiny student has coordinates."""


def samples(lengths: tuple[int, ...]) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, length in enumerate(lengths):
        ids = tuple(torch.randint(3, 13, (3 + length,), generator=generator).tolist())
        found.append(Sample(number, ids[:3], ids, tuple(at >= 3 for at in range(3 + length))))
    return found


SAMPLES = samples((2, 4, 1, 3, 3, 5, 2))


def measure(recipe: str = "offline_kd", micro_rows: int = 2, **changes: Any) -> tuple[BlockGradients, Any, Any]:
    config = tiny.config(recipe, **changes.pop("config", {}))
    lm, teacher = training.build_models(config)
    lm.model.double()
    if recipe == "offline_kd":
        teacher.lm.model.double()  # type: ignore[union-attr]
    options = {"blocks": 3, "size": ALL, "chunk_size": 4, **changes}
    task = tasks.of(config)
    rows: tuple[Any, Any] = (task.rows(config), task.collate(lm))
    return BlockGradients(lm, teacher, *rows, micro_rows=micro_rows, **options), lm, teacher  # type: ignore[arg-type]


def by_hand(lm: Any, teacher: Any, parts: list[list[Sample]]) -> Blocks:
    """Row by row, with the definitions."""
    named = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    rows: list[list[Tensor]] = [[], []]
    counts = [sum(sum(sample.target_mask) for sample in part) for part in parts]
    for part in parts:
        losses = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
        for sample in part:
            ids, at = torch.tensor([sample.input_ids]), torch.tensor(sample.target_mask)[1:]
            logs = [
                padded_logits(m, ids, torch.ones_like(ids))[0, :-1][at][:, : lm.vocab_size] for m in (lm, teacher.lm)
            ]
            student, told = (torch.log_softmax(logits, -1) for logits in logs)
            losses[0] = losses[0] - student.gather(1, ids[0, 1:][at][:, None]).sum()
            losses[1] = losses[1] + (told.detach().exp() * (told.detach() - student)).sum()
        for kept, loss in zip(rows, losses, strict=True):
            kept.append(
                torch.cat([g.flatten() for g in torch.autograd.grad(loss, named, retain_graph=True)]) / sum(counts)
            )
    ce, kd = (torch.stack(kept) for kept in rows)
    return Blocks(torch.tensor(counts), ce, ce - kd, True)


@pytest.mark.parametrize("micro_rows", [1, 2, 7])
def test_blocks_are_those_written_out(micro_rows: int) -> None:
    measured, lm, teacher = measure(micro_rows=micro_rows)
    found = measured(SAMPLES, CPU)
    assert found is not None
    expected = by_hand(lm, teacher, [SAMPLES[:2], SAMPLES[2:4], SAMPLES[4:]])
    assert found.exact
    assert torch.equal(found.counts, expected.counts)
    # Coordinates lie in the order of the parameters.
    for ours, theirs in ((found.ce, expected.ce), (found.difference, expected.difference)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert float(found.difference.abs().max()) > 1e-3


def test_a_sketch_is_off_by_what_it_says() -> None:
    whole, _, _ = measure()
    folded, _, _ = measure(size=499)
    exact, sketched = whole(SAMPLES, CPU), folded(SAMPLES, CPU)
    assert exact is not None
    assert sketched is not None
    assert not sketched.exact
    assert abs(moments(sketched).ce / moments(exact).ce - 1) < 4 * sketch_error(sketched) < 1
    assert sketched.ce.shape == (3, 499)


def test_a_mask_leaves_the_coordinates_that_train() -> None:
    measured, lm, _ = measure()
    generator = torch.Generator().manual_seed(1)
    masks = {n: torch.rand(p.shape, generator=generator) < 0.3 for n, p in lm.model.named_parameters()}
    inside = measure(mask=masks.__getitem__)[0](SAMPLES, CPU)
    everywhere = measured(SAMPLES, CPU)
    assert inside is not None
    assert everywhere is not None
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    torch.testing.assert_close(inside.ce, everywhere.ce * kept, rtol=0, atol=1e-15)


def test_adapters_alone_are_measured_where_they_alone_train() -> None:
    measured, lm, _ = measure(config={"student__lora": {"r": 2}})
    found = measured(SAMPLES, CPU)
    assert found is not None
    trained = sum(p.numel() for p in lm.model.parameters() if p.requires_grad)
    assert found.ce.shape[1] == trained < sum(p.numel() for p in lm.model.parameters())


def images(**changes: Any) -> tuple[Any, ...]:
    config = tiny.config("offline_kd", **tiny.PICTURED["offline_kd"] | changes)
    lm, teacher = training.build_models(config)
    for model in (lm.model, teacher.lm.model):  # type: ignore[union-attr]
        model.double()
    task = tasks.of(config)
    rows = (task.rows(config), task.collate(lm))
    some = [task.data(config, lm, teacher)[0][number] for number in range(11)]
    return lm, teacher, rows, some


@pytest.mark.parametrize("micro_rows", [1, 4])
def test_blocks_of_images_are_those_written_out(micro_rows: int) -> None:
    """Of the images as the next step changes them; batch statistics are the running ones."""
    lm, teacher, (rows, collate), some = images(
        student={"config": tiny.RESNET}, teacher={"kind": "frozen", "config": tiny.VIT}
    )
    lm.model.train()
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    found = BlockGradients(lm, teacher, rows, collate, 3, 100_000, micro_rows, 4)(some, CPU, 7)
    assert found is not None
    assert found.exact
    assert found.counts.tolist() == [3, 4, 4]
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    lm.model.eval()
    trained, parts = list(lm.model.parameters()), [some[:3], some[3:7], some[7:]]
    for number, part in enumerate(parts):
        batch = collate(rows(part, [0] * len(part), 7), 1, False)
        plain = collate(rows(part, [0] * len(part), 8), 1, False)
        assert not torch.equal(batch.pixels, plain.pixels)
        logits = [torch.log_softmax(one.head(one.hidden(batch.pixels)), -1) for one in (lm, teacher.lm)]
        ce = torch.nn.functional.nll_loss(logits[0], batch.labels, reduction="sum") / 11
        kd = torch.nn.functional.kl_div(logits[0], logits[1].detach(), log_target=True, reduction="sum") / 11
        for ours, loss in ((found.ce, ce), (found.ce - found.difference, kd)):
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained, retain_graph=True)])
            torch.testing.assert_close(ours[number], gradient, rtol=0, atol=1e-12)


def test_samples_without_a_completion_do_not_count() -> None:
    measured, _, _ = measure()
    bare = [Sample(50 + number, (3, 4)) for number in range(4)]
    found, expected = measured([bare[0], *SAMPLES, *bare[1:]], CPU), measured(SAMPLES, CPU)
    assert found is not None
    assert expected is not None
    assert torch.equal(found.ce, expected.ce)
    assert measured(bare, CPU) is None
    assert measured([*bare, *SAMPLES[:2]], CPU) is None


def test_nothing_is_disturbed() -> None:
    dropping = {"student__config": {**tiny.llama(8), "attention_dropout": 0.5}}
    measured, lm, _ = measure(config=dropping)
    lm.model.train()
    lm.model.get_input_embeddings().eval()
    lm.model.model.norm.weight.grad = torch.ones_like(lm.model.model.norm.weight)
    modes = [module.training for module in lm.model.modules()]
    before = [p.detach().clone() for p in lm.model.parameters()]
    hooks = [p._backward_hooks for p in lm.model.parameters()]
    state = torch.get_rng_state()
    first, again = measured(SAMPLES, CPU), measured(SAMPLES, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in lm.model.modules()] == modes
    assert all(torch.equal(p, old) for p, old in zip(lm.model.parameters(), before, strict=True))
    assert [p.grad is not None for n, p in lm.model.named_parameters()] == [
        n == "model.norm.weight" for n, _ in lm.model.named_parameters()
    ]
    assert all(not hook for hook in hooks)
    assert first is not None
    assert again is not None
    assert torch.equal(first.ce, again.ce), "dropout was on"


def test_gradients_are_freed_one_by_one() -> None:
    """What autograd keeps of those that have been folded takes no memory."""
    measured, lm, _ = measure()
    kept: list[Tensor] = []
    original = torch.autograd.grad

    def grad(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        kept.extend(g for g in found if g is not None and len(found) > 5)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", grad)
        measured(SAMPLES, CPU)
    assert len(kept) >= len(list(lm.model.parameters()))
    assert all(gradient.untyped_storage().nbytes() == 8 for gradient in kept)


OPT: dict[str, Any] = {"model_type": "opt", "hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 16, "dropout": 0.5}
OPT |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
"""Whose layers drop out by their own mode."""


@pytest.mark.parametrize("student", [tiny.llama(8), OPT], ids=["llama", "opt"])
def test_layers_go_on_recomputing_their_activations(student: dict[str, Any]) -> None:
    plain, _, _ = measure(config={"student__config": student})
    measured, lm, _ = measure(config={"student__config": student, "student__gradient_checkpointing": True})
    lm.model.train()
    calls: list[bool] = []
    [layer, _] = (module for module in lm.model.modules() if hasattr(module, "self_attn"))
    layer.self_attn.register_forward_hook(lambda module, *_: calls.append(module.training))
    found, expected = measured(SAMPLES, CPU), plain(SAMPLES, CPU)
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found.ce, expected.ce, rtol=0, atol=1e-12)
    # Of 4 micro-batches: forward, and again for each of two walks back.
    assert len(calls) == 4 * 3
    assert not any(calls)
