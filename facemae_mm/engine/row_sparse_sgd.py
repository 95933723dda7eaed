"""SGD that touches only the rows of which a sparse gradient speaks."""

from collections.abc import Callable, Iterable

import torch
from mmpretrain.registry import OPTIMIZERS


@OPTIMIZERS.register_module()
class RowSparseSGD(torch.optim.SGD):
    """SGD; where a gradient is sparse, momentum and weight decay too act on its rows alone.

    With `PartialFCHead(sample_rate=…, sparse=True)` a step reads and writes the sampled classes, not all. This is not
    PartialFC's own rule, which takes 0 for the gradient of the others: there they go on by momentum and shrink by
    weight decay in every step; here they stay as they are until they are drawn again, and their momentum with them.
    torch's own SGD refuses weight decay with sparse gradients.

    Args:
        params: As for `torch.optim.SGD`.
        lr: As for `torch.optim.SGD`.
        kwargs: As for `torch.optim.SGD`.
    """

    def __init__(self, params: Iterable, lr: float = 1e-3, **kwargs) -> None:
        super().__init__(params, lr, **kwargs)
        self._step_supports_amp_scaling = False  # GradScaler is to skip a step that overflowed, fused or not

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> torch.Tensor | None:
        """Takes a step; gradients stay as they are.

        Args:
            closure: Computes the loss anew, as for `torch.optim.SGD`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse = []
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    sparse.append((parameter, parameter.grad))
                    parameter.grad = None  # torch's step passes over it
        super().step()
        for parameter, gradient in sparse:
            parameter.grad = gradient
        return loss

    def _step_rows(self, parameter: torch.nn.Parameter, group: dict) -> None:
        gradient = parameter.grad
        if not (gradient._indices()[0].diff() > 0).all():  # autograd forgets that rows are sorted and each there once
            gradient = gradient.coalesce()
        rows, change = gradient._indices()[0], gradient._values()
        if group['maximize']:
            change = -change
        values = parameter[rows]
        change = change.add(values, alpha=group['weight_decay'])
        if group['momentum']:
            state = self.state[parameter]
            if state.get('momentum_buffer') is None:
                state['momentum_buffer'] = torch.zeros_like(parameter)
            old = state['momentum_buffer'][rows] * group['momentum']
            momentum = old.add_(change, alpha=1 - group['dampening'])
            state['momentum_buffer'][rows] = momentum
            change = change.add(momentum, alpha=group['momentum']) if group['nesterov'] else momentum
        parameter[rows] = values.sub_(change, alpha=float(group['lr']))
