"""ADM's feature terms beside any objective: the locations of two networks, and what is added to the loss for them.

**Our formulation** throughout (docs/adm.md). A location is a place of a feature map, resized to the smaller of the two,
or a target position of a text. ``B`` samples, ``C`` channels, ``L`` locations of all samples, ``D`` their width.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill import places, taps
from distill.errors import UserError
from distill.losses import agreement
from distill.models.base import Network
from distill.models.causal_lm import evaluating, unwrap
from distill.mutual import PREFIX
from distill.places import Places
from distill.types import MicroBatch

STUDENT, TEACHER = "student", "teacher"


@dataclass(frozen=True)
class Described:
    """Both networks' descriptions of the same locations (directions ``[L, D]``), and the sample of each, int64 ``[L]``.

    ``shape`` is that of a sample's map, None where locations are the targets.
    """

    student: Tensor
    teacher: Tensor
    sample: Tensor
    count: int
    shape: tuple[int, int] | None


class FeatureTerms:
    """Consensus for the student, divergence for a teacher that learns; outside of every module tree.

    ``options`` are the fields of the section ``adm``; ``teacher_loss`` names the loss of a teacher that learns.

    Raises:
        UserError: a layer is not there, has no map of an image with more than one place, or no state of each token.
    """

    def __init__(
        self, student: Network, teacher: Network, options: Mapping[str, Any], teacher_loss: str = "teacher_loss"
    ) -> None:
        self.options, self.teacher_loss = options, teacher_loss
        self.networks = {STUDENT: student, TEACHER: teacher}
        layers = {name: (options[f"{name}_layer"], f"adm.{name}_layer") for name in self.networks}
        self.taps = taps.Taps({name: _module(self.networks[name], *layer) for name, layer in layers.items()})
        self.places = {name: _located(network, name, self.taps, options) for name, network in self.networks.items()}
        usual = "channels" if None in self.places.values() else "relations"
        self.description = options["description"] or usual

    def watching(self) -> AbstractContextManager[None]:
        """What the networks' forward passes, and then the terms, have to be inside of."""
        return self.taps.open()

    def __call__(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """(the terms with their graph, detached sums to be recorded, what they add to which recorded loss), all
        summed over the batch's targets.

        A sample's term counts as often as it has targets, as its other losses do.
        """
        found, options = self.described(batch), self.options
        targets = torch.bincount(batch.rows, minlength=found.count)
        each = targets.to(torch.float32)[found.sample]
        heat, whose = options["temperature"], (found.sample, found.count)
        term = agreement.consensus(found.student, found.teacher, *whose, temperature=heat)
        consensus = (term * each).sum()
        loss, recorded = options["consensus"] * consensus, {"consensus": consensus.detach()}
        shares = {"loss": loss.detach()}
        if options["divergence"] > 0:
            pushed = agreement.divergence(
                found.teacher, found.student, *whose, temperature=heat, margin=options["margin"]
            )
            divergence = (pushed * each).sum()
            shares[self.teacher_loss] = options["divergence"] * divergence.detach()
            loss = loss + options["divergence"] * divergence
            recorded["divergence"] = divergence.detach()
        with torch.no_grad():
            locations = torch.bincount(found.sample, minlength=found.count)
            cosine = agreement.similarity(found.student, found.teacher)
            agreed = (cosine * each / locations[found.sample]).sum()
        return loss, recorded | {"agreement": agreed}, shares

    def maps(self, batch: MicroBatch) -> dict[str, Tensor]:
        """fp32 ``[B, h, w]`` of images that both networks have just read: the cosine of each place (``agreement``), its
        weight in the student's term (``consensus``), and its weight in a term that goes by the opposite."""
        found = self.described(batch)
        assert found.shape is not None, "texts have no maps"
        cosine = agreement.similarity(found.student, found.teacher).detach()
        temperature, shape = self.options["temperature"], (found.count, *found.shape)
        values = {"agreement": cosine}
        for name, sign in (("consensus", 1), ("divergence", -1)):
            values[name] = agreement.share(sign * cosine, found.sample, found.count, temperature)
        return {name: value.float().reshape(shape) for name, value in values.items()}

    def described(self, batch: MicroBatch) -> Described:
        """The locations of a batch that both networks have just read."""
        flat, sample, shape = self.locations(batch)
        count = int(batch.inputs[0].shape[0])
        described = {}
        for name, value in self._comparable(flat).items():
            # 16 bits count to 256.
            wide = value.to(torch.promote_types(value.dtype, torch.float32))
            length = agreement.usual(wide, sample, count)
            free = agreement.centred(wide, sample, count) if self.options["center"] else wide
            described[name] = agreement.directions(free, length)
            if self.description == "relations":
                related = agreement.relations(described[name], sample, count)
                length = agreement.usual(related, sample, count)
                described[name] = agreement.directions(related, length, agreement.UNRELATED)
        return Described(described[STUDENT], described[TEACHER], sample, count, shape)

    def locations(self, batch: MicroBatch) -> tuple[dict[str, Tensor], Tensor, tuple[int, int] | None]:
        """The features there, ``[L, C]`` by :data:`STUDENT` and :data:`TEACHER`, before they are made comparable; the
        sample of each location, int64 ``[L]``; the shape of a sample's map, None where locations are the targets."""
        given = {name: _given(self.taps, name, self.options[f"{name}_layer"]) for name in self.networks}
        student, teacher = self.places[STUDENT], self.places[TEACHER]
        if student is None or teacher is None:
            return self._of_targets(given, batch), batch.rows, None
        return _of_maps(student(given[STUDENT]), teacher(given[TEACHER]))

    def _of_targets(self, given: Mapping[str, Tensor], batch: MicroBatch) -> dict[str, Tensor]:
        for name, (ids, _) in ((STUDENT, batch.inputs), (TEACHER, batch.for_teacher.inputs)):
            _state_of_each(given[name], ids, name, self.options[f"{name}_layer"])
        return {STUDENT: batch.select(given[STUDENT]), TEACHER: batch.for_teacher.select(given[TEACHER])}

    def _comparable(self, flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of one width, without a weight that would have to be learned."""
        if self.description == "classes":
            return {name: self.networks[name].head(value) for name, value in flat.items()}
        if self.description == "relations":
            return dict(flat)
        width = min(value.shape[1] for value in flat.values())
        return {name: agreement.pooled(value, width) for name, value in flat.items()}


def _of_maps(student: Tensor, teacher: Tensor) -> tuple[dict[str, Tensor], Tensor, tuple[int, int]]:
    """Maps ``[B, C, h, w]`` of any two sizes → locations of the smaller one: means over places that fall together."""
    height, width = (min(student.shape[i], teacher.shape[i]) for i in (2, 3))
    flat = {}
    for name, features in ((STUDENT, student), (TEACHER, teacher)):
        small = features
        if features.shape[2:] != (height, width):
            down, across = (
                agreement.averaging(features.shape[2 + i], size, features) for i, size in enumerate((height, width))
            )
            small = down @ features @ across.T
        flat[name] = small.flatten(2).transpose(1, 2).reshape(-1, features.shape[1])
    sample = torch.arange(len(student), device=student.device).repeat_interleave(height * width)
    return flat, sample, (height, width)


def _located(network: Any, name: str, watched: taps.Taps, options: Mapping[str, Any]) -> Places | None:
    """Where the places of its layer are; None for a network of texts, which has none but its targets.

    Raises:
        UserError: the layer cannot be compared.
    """
    key = f"{name}_layer"
    if not hasattr(network, "shape"):
        _check_states(network, name, watched, options[key])
        return None
    found = places.find(network, watched, name, options[key], f"adm.{key}")
    if options["description"] == "classes":
        with evaluating(network.model), watched.open():
            network.hidden(torch.zeros(1, *network.shape, device=next(network.model.parameters()).device))
            described = found(watched[name])
            try:
                network.head(described[:, :, 0, 0])
            except RuntimeError as error:
                why = f"whose {described.shape[1]} channels the head does not take"
                allowed = f"'relations' or 'channels' with this adm.{key}, {why}"
                raise UserError("adm.description", "classes", allowed) from error
    return found


def _check_states(network: Any, name: str, watched: taps.Taps, layer: str | None) -> None:
    """Lets a network of texts read one."""
    device = next(network.model.parameters()).device
    ids = torch.arange(1, 6, device=device).remainder(network.vocab_size).expand(2, -1)
    with evaluating(network.model), watched.open():
        network.hidden(ids, torch.ones_like(ids))
        _state_of_each(_given(watched, name, layer), ids, name, layer)


def _state_of_each(features: Any, ids: Tensor, name: str, layer: str | None) -> None:
    """Raises UserError for an output that is no state for each token."""
    if not isinstance(features, Tensor) or features.ndim != 3 or features.shape[:2] != ids.shape:
        found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        allowed = f"a layer with a state for each token (of {list(ids.shape)} tokens it has {found})"
        raise UserError(f"adm.{name}_layer", layer, allowed)


def _given(watched: taps.Taps, name: str, layer: str | None) -> Tensor:
    """Raises UserError where the layer has not run, as the head does not that is called chunk by chunk."""
    try:
        return watched[name]
    except KeyError as error:
        raise UserError(f"adm.{name}_layer", layer, "a module that runs in a forward pass") from error


def _module(network: Network, layer: str | None, key: str) -> nn.Module:
    # By the names that a model has without an adapter around it: its layers carry the adapter.
    model: Any = unwrap(network.model)
    if layer is not None:
        return taps.find(model, layer, key)
    base: nn.Module | None = getattr(model, "model", None) if model.base_model is model else model.base_model
    # Of a model that reads texts, too (CLIP), its image classifier has the tower alone.
    base = getattr(model, "vision_model", None) if base is None else base
    if base is None:
        raise UserError(key, layer, f"the name of a module (a {model.config.model_type} has no backbone)")
    return base


def build(options: Mapping[str, Any] | None, student: Network, teacher: Any) -> FeatureTerms | None:
    """From the section ``adm``; None where it is off. ``teacher`` is one whose only network is at hand."""
    if options is None:
        return None
    networks = getattr(teacher, "networks", None)
    [(name, network)] = [("", teacher.lm)] if networks is None else networks.items()
    return FeatureTerms(student, network, options, f"{PREFIX}/{name}/loss")
