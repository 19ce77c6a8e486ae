"""The ``data`` section with its defaults."""

from collections.abc import Callable
from typing import Any

import pytest

from distill.config.schema import Data


@pytest.fixture
def data() -> Callable[..., dict[str, Any]]:
    return lambda **keys: Data(**keys).model_dump()
