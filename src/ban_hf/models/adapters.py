"""Networks with an adapter (PEFT): a frozen base, and the few weights that are trained beside it.

A `PeftModel` puts its layers into its base, so that the base itself, a `PreTrainedModel`, gives the
adapted predictions. Tasks, teachers and measurements see this base; only a student keeps the
wrapper, by which `Trainer` saves the adapter alone. peft is imported where an adapter is met.
"""

import copy
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ban_hf.errors import BANError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

#: What an adapter's config holds that does not change what a network predicts, or names the base.
TRANSIENT = frozenset("base_model_name_or_path revision inference_mode peft_version".split())
REPLACED = ".original_module."  # in the names of weights that `modules_to_save` stand in for


def is_adapted(model: Any) -> "TypeGuard[PeftModel]":
    """Whether a model is a `PeftModel`."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def base_of(model: Any) -> Any:
    """The model that a `PeftModel` adapts, with the adapter's layers in it; any other as it is."""
    return model.get_base_model() if is_adapted(model) else model


def has_adapter(model: nn.Module) -> bool:
    """Whether a model, wrapped or not, has layers of an adapter in it."""
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def check_kind(model: "PeftModel") -> None:
    """Raise unless a model's base, with the adapter's layers in it, predicts what the model does.

    So for virtual tokens before the input, a loss of the adapter's own (AdaLoRA), and layers that
    are switched on by the input (aLoRA, X-LoRA).
    """
    from peft.tuners.tuners_utils import BaseTuner

    config: PeftConfig = model.active_peft_config
    is_plain = type(model.base_model).forward is BaseTuner.forward
    if not is_plain or config.to_dict().get("alora_invocation_tokens"):
        raise BANError(
            f"model has an adapter of type {adapter_type(config)}, which does more than to add "
            "layers to its base, so that its loss would not be exact: use another, such as "
            "LoraConfig."
        )


def adapter_state(model: nn.Module) -> dict[str, Any]:
    """What decides a model's predictions beside its weights and config: of a plain one nothing."""
    if not has_adapter(model):
        return {}
    from peft import get_model_status

    status, configs = get_model_status(model), base_of(model).peft_config
    return {
        "adapters": {name: deciding_config(config) for name, config in configs.items()},
        "active": [status.active_adapters, status.merged_adapters, status.enabled],
    }


def adapter_type(config: "PeftConfig") -> str:
    """An adapter's type as peft names it: LORA."""
    from peft import PeftType

    return PeftType(config.peft_type).value


def deciding_config(config: "PeftConfig") -> dict[str, Any]:
    """An adapter's config without what changes no prediction, or is off; sets as lists in order.

    So another release of peft, with further options, gives the same.
    """
    kept = {k: v for k, v in config.to_dict().items() if v and k not in TRANSIENT}
    return {k: sorted(v) if isinstance(v, set) else v for k, v in kept.items()}


# One base for several adapters


def share_frozen(model: nn.Module, student: nn.Module) -> None:
    """Let a model hold the weights of a student's frozen base in place of equal ones of its own.

    Both keep their modes, buffers and adapters. Does nothing for a student without an adapter.
    """
    if not is_adapted(student):
        return
    theirs = base_weights(base_of(student))
    frozen = {name: weight for name, weight in theirs.items() if not weight.requires_grad}
    shared = {
        id(weight): frozen[name]
        for name, weight in base_weights(model).items()
        if name in frozen and is_same(weight, frozen[name])
    }
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) in shared:  # also under a second name, as a tied softmax
                setattr(module, name, shared[id(weight)])


def without_adapter(student: "PeftModel") -> PreTrainedModel:
    """A student's base as it is with the adapter off: modules of its own around the same weights.

    It stays that base when the student is trained, and has a mode of its own.
    """
    frozen = {id(p): p for p in student.parameters() if not p.requires_grad}
    twin = copy.deepcopy(student, frozen)
    tuner: Any = twin.base_model
    tuner.disable_adapter_layers()
    if trained := [name for name, p in twin.named_parameters() if p.requires_grad]:
        raise BANError(
            f"teacher is the base of model, whose own weights are trained ({trained[0]}): give "
            "the adapter bias='none', or give the teacher by the folder or Hub id of the base."
        )
    return base_of(twin)


def merged(model: nn.Module) -> Any:
    """A model with its adapter added to the weights of its base, a copy; any other as it is."""
    if is_adapted(model):
        return merge(copy.deepcopy(model))
    if has_adapter(model):
        raise BANError(
            f"members has a {type(model).__name__} with layers of an adapter: give the PeftModel, "
            "as PeftModel.from_pretrained(base, adapter) loads it."
        )
    return model


def merge(model: "PeftModel") -> PreTrainedModel:
    """Add a model's adapter to the weights of its base, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers = [m.get_base_layer() for m in model.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        for name, weight in list(layer.named_parameters(recurse=False)):
            if uses[id(weight)] > 1:  # tied: the other layer would get what is added here
                setattr(layer, name, nn.Parameter(weight.detach().clone(), requires_grad=False))
    tuner: Any = model.base_model
    merged: PreTrainedModel = tuner.merge_and_unload()
    return merged


def parameter_count(model: nn.Module) -> int:
    """The parameters that a model computes with: not those that an adapter stands in for."""
    return sum(p.numel() for p in used_weights(model).values())


def used_weights(model: nn.Module) -> dict[int, nn.Parameter]:
    """The parameters that a model computes with, by their identity."""
    named = model.named_parameters(remove_duplicate=False)
    return {id(weight): weight for name, weight in named if REPLACED not in name}


def base_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """A model's parameters by the names that they have in a base without an adapter."""
    return {base_weight(name): weight for name, weight in model.named_parameters()}


def base_weight(name: str) -> str:
    """The name that a parameter has in a base without an adapter."""
    for part in (".base_layer.", ".token_adapter.", REPLACED):
        name = name.replace(part, ".")
    return name


def is_same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether tensors, on any two devices, are equal in type, shape and values."""
    alike = ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return alike and torch.equal(ours.detach().to(theirs.device), theirs.detach())
