"""A multi-layer perceptron on pixels as a transformers model: softmax regression, deep linear networks, ReLU networks.

``B`` images, ``C`` channels, ``X`` by ``Y`` pixels, ``V`` classes. `model_type: mlp` is one that transformers does not
have; :func:`register` makes its ``Auto`` classes know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_outputs import ImageClassifierOutput

ACTIVATIONS = {"relu": torch.relu, "identity": lambda states: states}


class MLPConfig(PreTrainedConfig):
    """``hidden_sizes`` empty is softmax regression; ``activation`` `identity` makes a deep linear network.

    ``zero_init`` starts softmax regression at 0. Raises ValueError for an activation that there is not, or for a start at
    0 of a network with hidden layers, which would never leave it.
    """

    model_type = "mlp"

    def __init__(
        self,
        num_channels: int = 1,
        image_size: int | Sequence[int] = 8,
        hidden_sizes: Sequence[int] = (),
        activation: str = "relu",
        zero_init: bool = False,
        **kwargs: Any,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, but is {activation!r}.")
        if zero_init and hidden_sizes:
            raise ValueError("zero_init must be false with hidden_sizes: nothing would ever move.")
        self.num_channels, self.image_size = num_channels, image_size
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
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleList(nn.Linear(inward, outward) for inward, outward in pairs)
        self.classifier = nn.Linear(widths[-1], config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            std = 0.0 if self.config.zero_init else module.in_features**-0.5
            initialization.normal_(module.weight, mean=0.0, std=std)
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
