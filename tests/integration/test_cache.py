"""``distill cache`` and ``teacher=cached`` as whole commands: the live teacher's weights, kills, ranks, refusals."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill import cli
from distill.cache import manifest, shard
from distill.commands import cache, train
from distill.config.schema_cache import CacheConfig
from distill.errors import RunError, UserError
from distill.teachers.frozen import FrozenTeacher
from tests import tiny
from tests.processes import Process, together
from tests.unit.data.conftest import build_byte_tokenizer

RARE = {"callbacks__evaluation": None, "callbacks__sparsity": None, "callbacks__checkpoint": None}
PLAIN = [{"prompt": f"Say {i}.", "completion": f" {i}"} for i in range(40)]


def settings(**changes: Any) -> dict[str, Any]:
    return tiny.config("offline_kd", **({"data__limit": 60} | RARE | changes))


def make(out: Path, config: dict[str, Any] | None = None, **options: Any) -> Path:
    asked = CacheConfig(**(config or settings()), cache={"out": str(out), "shard_rows": 16, **options})
    assert cache.run(asked.model_dump(by_alias=True), out) == 0
    return out


def trained(folder: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    assert train.run(config, folder) == 0
    return load_file(folder / "model" / "model.safetensors")


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


EMBEDDED = {"kind": "frozen", "path": "package://distill/assets/teacher"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "all tokens": ({}, {}, {}),
    "all tokens, after a prompt of its own": ({"teacher__prompt": "{answer} {prompt}"}, {}, {}),
    "all tokens at another temperature": ({"objective__temperature": 2.0}, {}, {}),
    "hidden states": ({"objective__divergence": "jsd", "teacher": EMBEDDED}, {"states": True}, {"seed": 5}),
    "the top four": ({"objective__divergence": "topk_forward_kl", "objective__k": 4}, {}, {"data__batch_size": 6}),
    "three of the top four": (
        {"objective__divergence": "topk_reverse_kl", "objective__k": 3, "objective__tail": "renormalise"},
        {"k": 4},
        {"trainer__micro_batch_size": 5},
    ),
}
"""Changes of the run, options of the cache, and changes that both trainings make but the cache does not see."""


@pytest.mark.parametrize("case", CASES)
def test_the_student_of_a_cache_is_that_of_the_live_teacher(case: str, tmp_path: Path) -> None:
    changes, options, unseen = CASES[case]
    folder = make(tmp_path / "cache", settings(**changes), **options)
    live = settings(**changes, **unseen)
    cached = live | {"teacher": live["teacher"] | {"kind": "cached", "config": None, "cache": str(folder)}}
    expected = trained(tmp_path / "live", live)
    assert apart(trained(tmp_path / "cached", cached), expected) < 1e-5
    ours, theirs = tiny.metrics(tmp_path / "cached"), tiny.metrics(tmp_path / "live")
    for key in ("loss", "ce", "teacher_nll"):
        for record, other in zip(ours, theirs, strict=True):
            if key in record and not (key == "teacher_nll" and "temperature" in case):
                assert record[key] == pytest.approx(other[key], abs=2e-6), key
    assert expected.keys() == load_file(tmp_path / "live" / "source" / "model.safetensors").keys()


def test_a_full_kl_becomes_one_over_the_top_k_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make(tmp_path / "cache", k=4)
    cached = settings(teacher={"kind": "cached", "cache": str(folder)})
    same = settings(objective__divergence="topk_forward_kl", objective__k=4)
    with caplog.at_level("INFO", logger="distill"):
        found = trained(tmp_path / "cached", cached)
    assert "cache holds 4 tokens and the mass of the rest: topk_forward_kl" in caplog.text
    assert apart(found, trained(tmp_path / "live", same)) < 1e-5
    assert 0 < tiny.metrics(tmp_path / "cached")[-1]["kept_mass"] < 1


def test_drawn_tokens_train(tmp_path: Path) -> None:
    folder = make(tmp_path / "cache", k=2, draws=3)
    trained(tmp_path / "cached", settings(teacher={"kind": "cached", "cache": str(folder)}))
    assert tiny.metrics(tmp_path / "cached")[-1]["forward_kl"] > 0
    assert contents(make(tmp_path / "same", k=2, draws=3)) == contents(folder)


WORDS = ["cache", "student=llama_tiny", "student.path=null", "data.limit=3000", "cache.shard_rows=50"]


def command(out: Path) -> list[str]:
    return [*WORDS, f"cache.out={out}"]


def test_killed_and_resumed_equals_two_ranks_equals_one_process(tmp_path: Path) -> None:
    killed = Process(tmp_path, cli.main, command(tmp_path / "killed"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "shard-00003.safetensors").exists():
        assert killed.poll() is None, killed.said()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {name for name in contents(tmp_path / "killed") if name.startswith("shard")}
    assert 3 < len(before) < 60
    (tmp_path / "killed" / f".shard-00004.safetensors.{'0a' * 16}").write_bytes(b"half of it")
    assert not manifest.read(tmp_path / "killed", "cache.out").complete
    together(tmp_path, cli.main, command(tmp_path / "two"))
    assert cli.main(command(tmp_path / "killed")) == 0
    left = contents(tmp_path / "killed")
    assert left == contents(tmp_path / "two")
    assert len(left) == 61
    ids = [load_file(tmp_path / "two" / name)["sample_ids"] for name in left if name.endswith("safetensors")]
    assert len(torch.cat(ids).unique()) == 3000


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of rows from a file, with the tokenizer and rows that it is of."""
    folder = tmp_path_factory.mktemp("text")
    build_byte_tokenizer("chatml").save_pretrained(folder / "tokenizer")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, PLAIN)))
    make(folder / "cache", of_text(folder))
    return folder


def of_text(folder: Path, **changes: Any) -> dict[str, Any]:
    long = {"max_position_embeddings": 512}
    options = {"data__source": "text", "data__path": str(folder / "rows.jsonl"), "data__limit": None}
    for name, hidden in (("student", 8), ("teacher", 16)):
        options |= {f"{name}__config": tiny.llama(hidden) | long, f"{name}__tokenizer": str(folder / "tokenizer")}
    if "teacher" in changes:
        options = {key: value for key, value in options.items() if not key.startswith("teacher")}
    return settings(**(options | {"data__max_length": 64} | changes))


def refusal(folder: Path, **changes: Any) -> str:
    given = {"teacher": {"kind": "cached", "cache": str(folder / "cache")}} | changes
    with pytest.raises(UserError) as found:
        train.run(of_text(folder, **given), folder / "refused")
    assert not (folder / "refused").exists()
    assert "\n" not in str(found.value)
    return str(found.value)


def test_another_tokenizer_template_data_or_model_is_refused(text: Path, tmp_path: Path) -> None:
    build_byte_tokenizer("llama3").save_pretrained(tmp_path / "other")
    other = {"student__tokenizer": str(tmp_path / "other")}
    assert "of the student's" in refusal(text, **other)
    assert "`student.tokenizer`" not in refusal(text, **other)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, PLAIN[::-1])))
    assert "the same training data" in refusal(text, data__path=str(tmp_path / "rows.jsonl"))
    cached = {"kind": "cached", "cache": str(text / "cache")}
    assert "`teacher.path` must be" in refusal(text, teacher=cached | {"path": "elsewhere"})
    assert "`teacher.revision` must be" in refusal(text, teacher=cached | {"revision": "v2"})
    assert "`teacher.dtype` must be 'float32'" in refusal(text, teacher=cached | {"dtype": "bfloat16"})
    assert "`objective.temperature` must be 1.0" in refusal(text, objective__temperature=2.0)


def test_a_cache_of_the_weights_that_were_at_the_teachers_path_is_refused(tmp_path: Path) -> None:
    assert train.run(tiny.config("sft", trainer__max_steps=1), tmp_path / "model") == 0
    live = {"kind": "frozen", "path": str(tmp_path / "model"), "config": None, "tokenizer": None}
    make(tmp_path / "cache", settings(teacher=live))
    cached = settings(teacher={"kind": "cached", "cache": str(tmp_path / "cache"), "path": str(tmp_path / "model")})
    assert train.run(cached, tmp_path / "run") == 0
    file = tmp_path / "model" / "model" / "model.safetensors"
    weights = load_file(file)
    save_file({name: tensor + 0.5 for name, tensor in weights.items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"`teacher.cache` must be a cache of the weights that are at .* now"):
        train.run(cached, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    shutil.rmtree(tmp_path / "model")
    assert train.run(cached, tmp_path / "gone") == 0


def test_moved_rows_and_a_part_of_them_are_served(text: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text((text / "rows.jsonl").read_text())
    teacher = {"kind": "cached", "cache": str(text / "cache")}
    config = of_text(text, data__path=str(tmp_path / "rows.jsonl"), data__limit=13, teacher=teacher)
    assert train.run(config, tmp_path / "run") == 0


def test_tokens_cut_elsewhere_are_refused_by_sample(text: Path) -> None:
    assert "the same tokens (sample 10 has others: data, template or max_length)" in refusal(text, data__max_length=9)


def test_a_cache_is_not_continued_by_another(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`cache.out` must be another folder.*\(temperature is 1.0 there, 3.0 here\)"):
        make(text / "cache", of_text(text, objective__temperature=3.0))
    with pytest.raises(UserError, match=r"encoding is \w+… there"):
        make(text / "cache", of_text(text, data__max_length=30))
    with pytest.raises(UserError, match=r"shard_rows is 16 there, 8 here"):
        make(text / "cache", of_text(text), shard_rows=8)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="a new or empty folder"):
        make(tmp_path / "full")


def test_a_part_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    folder = make(tmp_path / "cache", settings(data__limit=20))
    with pytest.raises(UserError, match=r"lacks number \d+; 20 of 9090 rows"):
        train.run(settings(data__limit=21, teacher={"kind": "cached", "cache": str(folder)}), tmp_path / "run")


def test_a_teacher_that_says_nothing_finite_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cache.training.build_models

    def broken(config: dict[str, Any]) -> Any:
        lm, teacher = real(config)
        teacher.lm.model.model.norm.weight.data.fill_(torch.nan)
        return lm, teacher

    monkeypatch.setattr(cache.training, "build_models", broken)
    for states in (False, True):
        with pytest.raises(RunError, match="teacher's logits are not finite"):
            make(tmp_path / "cache", states=states)
        assert not list((tmp_path / "cache").glob("shard*"))
        for path in (tmp_path / "cache").iterdir():
            path.unlink()


def test_a_token_that_the_teacher_has_masked_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cache.training.build_models
    masked = torch.tensor([0])

    def masking(config: dict[str, Any]) -> Any:
        lm, teacher = real(config)
        if isinstance(teacher, FrozenTeacher):
            head = teacher.lm.head
            teacher.lm.head = lambda hidden: head(hidden).index_fill(-1, masked, -torch.inf)
        return lm, teacher

    monkeypatch.setattr(cache.training, "build_models", masking)
    folder = make(tmp_path / "cache")
    expected = trained(tmp_path / "live", settings())
    cached = settings(teacher={"kind": "cached", "cache": str(folder)})
    assert apart(trained(tmp_path / "cached", cached), expected) < 1e-5
    assert apart(load_file(tmp_path / "live" / "source" / "model.safetensors"), expected) > 1e-3


def test_a_damaged_cache_is_mended_by_the_same_words(tmp_path: Path) -> None:
    folder = make(tmp_path / "cache", states=True)
    whole = contents(folder)
    flipped = bytearray(whole["shard-00001.safetensors"])
    flipped[-1] ^= 1
    (folder / "shard-00001.safetensors").write_bytes(flipped)
    (folder / "shard-00002.safetensors").unlink()
    (folder / "shard-00003.safetensors").write_bytes(b"torn")
    (folder / ".manifest.json.left").touch()
    assert contents(make(folder, states=True)) == whole | {".manifest.json.left": b""}
    (folder / "head.safetensors").write_bytes(b"torn")
    assert contents(make(folder, states=True)) == whole | {".manifest.json.left": b""}


@pytest.mark.parametrize("first", [0, 1])
def test_ranks_that_mend_a_cache_do_not_undo_each_other(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank has looked at the damage when the other comes and mends what is its own."""
    folder = make(tmp_path / "cache", states=True)
    whole = contents(folder)
    for name in ("shard-00000.safetensors", "shard-00001.safetensors", "head.safetensors"):
        (folder / name).write_bytes(whole[name][:-1] + bytes([whole[name][-1] ^ 1]))
    intact, left = shard.intact, [1 - first]

    def interrupted(path: Path, expected: manifest.Shard) -> bool:
        looked = intact(path, expected)
        if left:
            monkeypatch.setenv("RANK", str(left.pop()))
            make(folder, states=True)
            monkeypatch.setenv("RANK", str(first))
        return looked

    monkeypatch.setattr(shard, "intact", interrupted)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(first))
    make(folder, states=True)
    assert contents(folder) == whole


def test_a_draft_of_a_killed_process_is_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    for name in ("manifest.json", "shard-00000.safetensors", "head.safetensors", "notes"):
        manifest.drafted(folder / name).touch()
    make(folder)
    [other] = folder.glob(".*")
    assert other.stem == ".notes", "whoever finishes the cache clears its drafts away, and nothing else"


def test_a_manifest_whose_draft_another_process_has_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have finished the same cache; without one that is there it is an error."""
    found = manifest.read(make(tmp_path / "cache"), "cache")
    real = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, *words, **more: real(path, *words, **more) and path.unlink())
    manifest.write(tmp_path / "cache", found)
    with pytest.raises(FileNotFoundError):
        manifest.write(tmp_path, found)


def test_states_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cache.training.build_models

    def loud(config: dict[str, Any]) -> Any:
        lm, teacher = real(config)
        teacher.lm.model.model.norm.weight.data.fill_(1e6)
        return lm, teacher

    monkeypatch.setattr(cache.training, "build_models", loud)
    with pytest.raises(RunError, match=r"do not fit into torch.float16: choose another `cache.stored`"):
        make(tmp_path / "cache", states=True, stored="float16")


def test_a_damaged_head_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "cache", states=True)
    save_file({"weight": torch.zeros(1)}, folder / "head.safetensors")
    with pytest.raises(UserError, match=r"an intact head\.safetensors"):
        train.run(settings(teacher={"kind": "cached", "cache": str(folder)}), tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["teacher=cached"], "`teacher.kind` must be 'frozen'"),
        (["rollout=on_policy"], "`rollout.kind` must be 'dataset'"),
        (["cache.states=true", "cache.k=3"], "`cache.k` must be null with cache.states"),
        (["cache.states=true", "cache.draws=3"], "`cache.draws` must be 0 with cache.states"),
        (["cache.states=true", "cache.parquet=true"], "`cache.parquet` must be false with cache.states"),
        (["cache.k=0"], "`cache.k`"),
        (["objective.temperature={start: 4, end: 1}"], "`objective.temperature` must be one number"),
        (["objective=jsd"], "`objective.divergence` must be one of"),
    ],
)
def test_bad_words_are_refused(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*words, "cache.k=4"] if words == ["objective=jsd"] else words
    assert cli.main(["cache", *given, "data.limit=4", f"cache.out={tmp_path}/cache"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["teacher.cache=null"], "`teacher.cache` must be the folder of a cache"),
        (["teacher.cache=nowhere"], "there is none"),
        (["recipe=opd", "teacher=cached"], "`rollout.kind` must be 'dataset' with teacher.kind 'cached'"),
        (["teacher=frozen", "teacher.cache=a"], "`teacher.cache` must be null unless"),
        (["teacher.placement=sharded", "trainer=zero2"], "`teacher.placement` must be 'replicated'"),
    ],
)
def test_bad_words_of_a_run_are_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "recipe=offline_kd", "teacher=cached", *words, f"hydra.run.dir={tmp_path}/run"]
    assert cli.main(line) == 2
    assert said in capsys.readouterr().err
