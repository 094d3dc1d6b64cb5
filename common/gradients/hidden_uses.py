"""Uses of parameters that no recorded call explains: in scripts, custom functions, checkpoints, second derivatives.

They are found in autograd's graph, which has every use of a parameter, whoever made it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from common.gradients.layer_calls import LayerCall
from common.gradients.parameter_sources import leaf_of, nodes_behind

UNSEEN = "no call that uses it is seen"
HOOKED = "a hook changes its gradient"


def hidden_uses(
    total: Tensor, parameters: Mapping[str, Tensor], calls: Sequence[LayerCall], wanted: Collection[str]
) -> dict[str, str]:
    """Return why the gradient of a scalar by some parameters is more than the share of the calls, by parameter.

    Searched are the ways through the graph that enter no call by a parameter, or by what is computed from parameters.

    Args:
        total: the scalar.
        parameters: those that calls were recorded for, by name.
        calls: all calls that use the wanted ones.
        wanted: names of the parameters to look for.
    """
    hooked = {name: HOOKED for name in wanted if name in parameters and parameters[name]._backward_hooks}
    names = {id(parameter): name for name, parameter in parameters.items() if name in wanted}
    inside = {output.node: call.inputs for call in calls for output in call.outputs}
    reached: set[str] = set()
    for node in nodes_behind([total.grad_fn], inside):
        if node.name() == "CheckpointFunctionBackward":  # a reentrant checkpoint has a graph of its own
            reached.update(names.values())
        elif (key := leaf_of(node)) in names:
            reached.add(names[key])
    return dict.fromkeys(sorted(reached), UNSEEN) | hooked
