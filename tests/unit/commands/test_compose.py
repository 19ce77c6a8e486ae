from pathlib import Path

import pytest
from omegaconf import OmegaConf

from distill.commands import compose, overrides
from distill.config.validate import ConfigError
from distill.errors import UserError

GROUPS = ("recipe", "teacher")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("seed=1", "++seed=1"),
        ("+typo=1", "++typo=1"),
        ("++typo=1", "++typo=1"),
        ("data.path=a=b", "++data.path=a=b"),
        ("teacher.path=x", "++teacher.path=x"),
        ("recipe=opd", "recipe=opd"),
        ("+recipe=opd", "+recipe=opd"),
        ("recipe@x=opd", "recipe@x=opd"),
        ("~callbacks.extra.x", "~callbacks.extra.x"),
        ("~seed=1", "~seed=1"),
        ("hydra.run.dir=x", "hydra.run.dir=x"),
        ("+hydra.run.dir=x", "+hydra.run.dir=x"),
        ("hydra/launcher=joblib", "hydra/launcher=joblib"),
        ("word", "word"),
    ],
)
def test_rewrite(given: str, expected: str) -> None:
    assert overrides.rewrite(given, GROUPS) == expected


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["student.path=x"], ["student=path"]),
        (["seed=1", "++student.config.hidden_size=8"], ["student=path"]),
        (["student=llama_tiny", "student.path=x"], []),
        (["experiment=smollm2_addition", "student.path=x"], []),
        (["student.dtype=bfloat16"], []),
        (["teacher.path=x"], []),
    ],
)
def test_a_student_of_ones_own_is_not_trained_like_the_embedded_one(given: list[str], added: list[str]) -> None:
    assert overrides.completed(given) == [*given, *added]


def problems(*words: str, command: str = "train", multirun: bool = False) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        compose.check(command, words, multirun=multirun)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_unknown_options_come_with_all_other_mistakes() -> None:
    found = problems("recipe=opdd", "optimizer=adma", "seed=x", "+typo=1", "objective.beta=0", "objective=jsd")
    assert list(found) == ["recipe", "optimizer", "seed", "typo", "objective.beta"]
    recipes = (
        "kd_variance, multi_teacher, offline_kd, online_adm, online_kd, online_lora, opd, self_distillation, sft, "
        "speculative_kd, subnetwork, two_stage"
    )
    assert found["recipe"] == f"`recipe` must be one of {recipes} (did you mean 'opd'?), but is 'opdd'."


def test_what_is_no_override_is_named() -> None:
    assert problems("foo")["foo"].startswith("`foo` must be KEY=VALUE")
    assert "but is 'a b{'" in problems("data.path=a b{")["data.path"]


def test_a_secret_in_a_broken_override_is_not_shown() -> None:
    assert "swordfish" not in str(problems("logger.password=swordfish{"))


def test_a_deleted_key_would_be_its_default_again() -> None:
    assert "callbacks.sparsity=null" in problems("~callbacks.sparsity")["callbacks.sparsity"]


def test_several_values_need_a_sweep() -> None:
    assert problems("seed=1,2")["seed"].startswith("`seed` must be one value")
    assert problems("recipe=opd,sft")["recipe"].startswith("`recipe` must be one value")


def test_every_job_of_a_sweep_is_checked_before_the_first_starts() -> None:
    jobs = compose.check("train", ["recipe=opd,sft", "seed=range(0,3)"], multirun=True)
    assert sorted((job.config["run_name"], job.config["seed"]) for job in jobs) == [
        (name, seed) for name in ("opd", "sft") for seed in range(3)
    ]
    assert list(problems("seed=1,x", "recipe=opd,sftt", multirun=True)) == ["recipe", "seed"]
    assert list(problems("seed=1,x", "recipe=opd,sft", multirun=True)) == ["seed"]


def test_what_cannot_be_resolved_is_named() -> None:
    assert "'NOPE' not found" in problems("student.path=${oc.env:NOPE}")["student.path"]
    assert "resolvable" in problems("student.path=${no.such.key}")["student.path"]


def test_hydra_may_instantiate_its_own_parts_only() -> None:
    assert list(problems("hydra.launcher._target_=os.system")) == ["hydra.launcher._target_"]
    assert list(problems("hydra.sweeper._target_=os.system", multirun=True)) == ["hydra.sweeper._target_"]


@pytest.mark.parametrize(
    ("command", "words", "config"),
    [
        ("eval", ["checkpoint=x", "seed=3"], {"checkpoint": "x", "seed": 3}),
        ("report", ["runs=[a,b]"], {"runs": ["a", "b"], "out": None}),
        ("mask", ["rule=low", "source=a", "density=0.1", "out=c"], {"rule": "low", "scope": "tensor", "masks": []}),
        ("label", ["out=c", "data.limit=5"], {"out": "c", "accelerator": "auto"}),
        ("select", ["out=c", "keep=0.25"], {"out": "c", "keep": 0.25, "part_rows": 1024}),
        (
            "dashboard",
            ["groups=[sft,'two words']"],
            {"project": "distill", "groups": ["sft", "two words"], "out": None},
        ),
        ("analyze", ["source=a", "trained=b", "out=c"], {"source": "a", "out": "c", "seed": 0}),
    ],
)
def test_other_commands(command: str, words: list[str], config: dict[str, object]) -> None:
    [composed] = compose.check(command, words)
    assert composed.config | config == composed.config


def test_a_name_that_would_leave_the_filters_quotes_is_refused() -> None:
    assert "groups" in problems("groups=['a\"b']", command="dashboard")


def test_required_keys_are_named() -> None:
    assert list(problems(command="report")) == ["runs"]
    assert set(problems("typo=1", command="analyze")) == {"source", "trained", "out", "typo"}


def test_defaults_show_every_key() -> None:
    node = compose.defaults(compose.SCHEMAS["train"][0])
    assert OmegaConf.create(node).data.batch_size == 16
    assert compose.defaults(compose.SCHEMAS["eval"][0])["checkpoint"] == "???"


def test_a_missing_folder_of_groups_is_named() -> None:
    with pytest.raises(UserError, match="`--config-dir` must be an existing folder"), compose.session("/nope"):
        pass


def test_a_search_path_of_hydra_brings_options_too(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("name: sgd\n")
    [composed] = compose.check("train", ["optimizer=mine", f"hydra.searchpath=[file://{tmp_path}]"])
    assert composed.choices["optimizer"] == "mine"
    assert composed.config["optimizer"]["name"] == "sgd"


def test_launchers_and_their_keys_are_checked_once_for_all_jobs() -> None:
    found = problems("hydra/launcher=submtit_slurm", "seed=1,2", multirun=True)
    assert list(found) == ["hydra/launcher"]
    assert "did you mean 'submitit_slurm'?" in found["hydra/launcher"]
    found = problems("hydra.sweeper.max_batch=2", "seed=1,2", multirun=True)
    assert len(set(found.values())) == 1
    assert "did you mean 'max_batch_size'?" in found["hydra.sweeper.max_batch"]


def test_pydantics_own_words_are_not_shown() -> None:
    assert problems("runs=[]", command="report")["runs"] == "`runs` must be a list of at least 1, but is []."
