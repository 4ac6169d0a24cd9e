"""What every pretrained network here is: fixed, always as in evaluation, and no part of the checkpoints of what is trained around it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

FrozenModule = TypeVar("FrozenModule", bound="Frozen")


class Frozen(nn.Module):
    """A module whose weights come from a file, or that has none.

    Its parameters take no gradients. Batch normalisation and dropout stay in evaluation mode whatever ``train()`` its owner is told. It
    adds nothing to the state dict of a module that holds it and asks for nothing from one, so that checkpoints stay small and load
    strictly; its own state dict is empty. It moves with its owner, and is copied and pickled whole.

    Subclasses call :meth:`freeze` when their weights are loaded.
    """

    def freeze(self: FrozenModule) -> FrozenModule:
        """Take the gradients from all parameters, and enter evaluation mode for good."""
        return self.requires_grad_(False).eval()

    def train(self: FrozenModule, mode: bool = True) -> FrozenModule:
        """Stay in evaluation mode."""
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Nothing: ``destination`` as it is."""
        if args:  # the order of old, as nn.Module takes it
            destination = args[0]
        return OrderedDict() if destination is None else destination

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # torch asks the parts of this module for their entries afterwards, in the same table: they find their own values.
        for name in [name for name in state_dict if name.startswith(prefix)]:
            del state_dict[name]
        state_dict.update({prefix + name: value for name, value in own_state(self).items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def working_dtype(self, image: Tensor) -> torch.dtype:
        """What is computed in: the dtype of the weights; without weights that of the image, at least float32."""
        weight = next(self.parameters(), None)
        return torch.promote_types(image.dtype, torch.float32) if weight is None else weight.dtype


def own_state(module: nn.Module) -> Mapping[str, Tensor]:
    """The parameters and persistent buffers of a module and of all its parts, frozen ones included, by their names."""
    found: dict[str, Tensor] = {}
    for path, part in module.named_modules():
        kept = {name: value for name, value in part.named_buffers(recurse=False) if name not in part._non_persistent_buffers_set}
        values = {**dict(part.named_parameters(recurse=False)), **kept}
        found.update({f"{path}.{name}" if path else name: value for name, value in values.items()})
    return found
