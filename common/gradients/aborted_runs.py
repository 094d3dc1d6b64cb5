"""Forward passes that end in an exception, as under torch.func.vmap, in the middle of what a model does to itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_HELD = ("_parameters", "_buffers", "_modules")


@contextmanager
def restored_if_aborted(model: nn.Module) -> Iterator[None]:
    """Where the block raises, give all modules back their class, attributes and parameters, and these their flags.

    A model may register something for the time of a forward pass, as adapters of single parameters do: cut off in
    between, it would keep it, with other parameters to train than before.
    """
    before = [(m, type(m), dict(vars(m)), {name: dict(vars(m)[name]) for name in _HELD}) for m in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except Exception:
        for module, kind, attributes, held in before:
            object.__setattr__(module, "__class__", kind)
            for name, contents in held.items():
                attributes[name].clear()
                attributes[name].update(contents)
            vars(module).clear()
            vars(module).update(attributes)
        for parameter, is_trained in trained:
            parameter.requires_grad_(is_trained)
        raise
