from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from distill.config import checks_task, schema, schema_analyze, schema_mask


def test_every_default_is_valid_by_its_own_rules() -> None:
    dumped = schema.TrainConfig().model_dump(mode="json", by_alias=True)
    assert schema.TrainConfig.model_validate(dumped) == schema.TrainConfig()


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (schema.TrainConfig, "seed"),
        (schema.Optimizer, "lr"),
        (schema.Trainer, "micro_batch_size"),
        (schema.Data, "digits"),
    ],
)
def test_true_is_no_number(section: type[BaseModel], key: str) -> None:
    with pytest.raises(ValidationError, match=r"valid (integer|number)"):
        section.model_validate({key: True})


def test_true_is_true_where_a_boolean_is_meant() -> None:
    assert schema.Data(chat_template=True).chat_template


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (schema.Optimizer, {"betas": [0.9, 1.0]}),
        (schema.Optimizer, {"betas": [-0.1, 0.9]}),
        (schema.Optimizer, {"betas": [0.9]}),
        (schema.Optimizer, {"lr": float("nan")}),
        (schema.Optimizer, {"lr": float("inf")}),
        (schema.Rollout, {"top_p": 0}),
        (schema.Rollout, {"temperature": -1}),
        (schema.Objective, {"temperature": 0}),
        (schema.Objective, {"ratio_clip": 1}),
        (schema.TrainConfig, {"run_name": "a/b"}),
        (schema.TrainConfig, {"seed": 2**31}),
        (schema.ReportConfig, {"runs": []}),
        (schema_analyze.AnalyzeConfig, {"source": "a", "trained": "b", "out": "c", "seed": -1}),
        (schema_analyze.AnalyzeConfig, {"source": "", "trained": "b", "out": "c"}),
        (schema_analyze.AnalyzeConfig, {"source": "a", "trained": "b", "out": ""}),
        (schema_mask.MaskConfig, {"source": "", "trained": "b", "out": "c"}),
        (schema_mask.MaskConfig, {"masks": [""], "out": "c"}),
    ],
)
def test_out_of_range_is_refused(section: type[BaseModel], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section.model_validate(values)


def test_tasks_that_recipes_ask_for_exist() -> None:
    assert {checks_task.TEXTS, checks_task.CLASSES} < set(get_args(schema.Task.model_fields["name"].annotation))
