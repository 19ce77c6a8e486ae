"""A multi-layer perceptron on pixels as a transformers model: softmax regression, deep linear networks, ReLU networks.

``B`` images, ``C`` channels, ``X`` by ``Y`` pixels, ``V`` classes. `model_type: mlp` is one that transformers does not
have; :func:`register` makes its ``Auto`` classes know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_outputs import ImageClassifierOutput

ACTIVATIONS = {"relu": torch.relu, "identity": lambda states: states}


class MLPConfig(PreTrainedConfig):
    """``hidden_sizes`` empty is softmax regression; ``activation`` `identity` makes a deep linear network.

    Without ``bias`` weight decay is an ℓ2 term of every weight, and softmax regression strongly convex.
    ``zero_init`` starts softmax regression at 0.

    Raises:
        ValueError: an activation that there is not, or a start at 0 with hidden layers, which would never leave it.
    """

    model_type = "mlp"

    def __init__(
        self,
        num_channels: int = 1,
        image_size: int | Sequence[int] = 8,
        hidden_sizes: Sequence[int] = (),
        activation: str = "relu",
        bias: bool = True,
        zero_init: bool = False,
        **kwargs: Any,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, but is {activation!r}.")
        if zero_init and hidden_sizes:
            raise ValueError("zero_init must be false with hidden_sizes: nothing would ever move.")
        self.num_channels, self.image_size, self.bias = num_channels, image_size, bias
        self.hidden_sizes, self.activation, self.zero_init = list(hidden_sizes), activation, zero_init
        super().__init__(**kwargs)


class MLPForImageClassification(PreTrainedModel):
    """Flattened pixels → hidden layers → ``classifier``."""

    config_class = MLPConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        widths = [config.num_channels * height * width, *config.hidden_sizes]
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(inward, outward, config.bias) for inward, outward in pairs)
        self.classifier = nn.Linear(widths[-1], len(config.id2label or {}), config.bias)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            std = 0.0 if self.config.zero_init else module.in_features**-0.5
            initialization.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                initialization.zeros_(module.bias)

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutput:
        """``[B, C, X, Y]`` → logits ``[B, V]``."""
        states = pixel_values.flatten(1)
        for layer in self.layers:
            states = ACTIVATIONS[self.config.activation](layer(states))
        return ImageClassifierOutput(logits=self.classifier(states))


def register() -> None:
    """Makes ``AutoConfig`` and ``AutoModelForImageClassification`` know the type; as often as one likes."""
    AutoConfig.register(MLPConfig.model_type, MLPConfig, exist_ok=True)
    AutoModelForImageClassification.register(MLPConfig, MLPForImageClassification, exist_ok=True)
