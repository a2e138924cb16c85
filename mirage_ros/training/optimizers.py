"""AdamW, and Muon (Jordan et al. 2024): steps along the orthogonalised momentum of kernels, so that a direction which the gradient
seldom shows is learnt as fast as one that it shows always. Adam moves all else: embeddings, norms, what comes first and last.

Kernels are taken as matrices of outputs by inputs. A step is as long as Adam's would be about (Liu et al. 2025), times `FACTOR`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from mirage_ros.errors import MirageError

MOMENTUM, BETAS, EPSILON = 0.95, (0.9, 0.95), 1e-8
#: Of the root mean square of Adam's steps that Liu et al. took for a kernel's, and by how much ours are longer (docs/log.md).
RMS, FACTOR = 0.2, 2.0
#: Of the polynomial that brings singular values near 1, and how often it is applied (Jordan et al. 2024).
QUINTIC, ROUNDS = (3.4445, -4.7750, 2.0315), 5


def adamw(network: nn.Module, config) -> torch.optim.Optimizer:
    """For whatever of the network requires gradients; `config` says `learning_rate` and `weight_decay`."""
    return torch.optim.AdamW(_trained(network), lr=config.learning_rate, weight_decay=config.weight_decay, betas=BETAS)


def make_optimizer(network: nn.Module, config, accelerator: Accelerator) -> torch.optim.Optimizer:
    """As a LoopConfig has it. Raises MirageError for one that is not known here."""
    if config.optimizer == "adamw":
        return adamw(network, config)
    if config.optimizer != "muon" or not hasattr(network, "kernels"):
        raise MirageError(f"The optimizer of {type(network).__name__} is {config.optimizer!r}; give adamw, or muon for the dreamer.")
    together = accelerator.num_processes, accelerator.process_index
    return Muon(_trained(network), network.kernels(), config.learning_rate, together, accelerator.reduce)


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


class Muon(torch.optim.Optimizer):
    """Adam for the parameters, Muon for those of them that are kernels.

    Args:
        kernels: of two dimensions at least.
        together: how many processes train, and which one this is: each orthogonalises its share.
        total: the sum of a tensor over these processes.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], kernels: Collection[nn.Parameter], learning_rate: float,
        together: tuple[int, int] = (1, 0), total: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:  # fmt: skip
        super().__init__(parameters, {"lr": learning_rate})
        self._kernels, self._together, self._total = {id(kernel) for kernel in kernels}, together, total

    @torch.no_grad()
    def step(self) -> None:
        group, wanted = self.param_groups[0], []
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if id(parameter) in self._kernels:
                wanted.append((parameter, self._momentum(parameter)))
            else:
                self._adam(parameter, group["lr"])
        for (parameter, matrix), change in zip(wanted, self._orthogonal([matrix for _, matrix in wanted]), strict=True):
            length = FACTOR * RMS * max(matrix.shape) ** 0.5
            parameter.add_(change.view_as(parameter), alpha=-group["lr"] * length)

    def _momentum(self, parameter: nn.Parameter) -> Float[Tensor, "o i"]:
        """Nesterov's, as a matrix."""
        state = self.state[parameter]
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        mean.lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(mean, MOMENTUM).flatten(1)

    def _adam(self, parameter: nn.Parameter, rate: float) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter), "step": torch.zeros(())}
        state["step"] += 1
        mean, square, step = state["mean"], state["square"], float(state["step"])
        mean.lerp_(parameter.grad, 1 - BETAS[0])
        square.lerp_(parameter.grad.square(), 1 - BETAS[1])
        spread = (square / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
        parameter.addcdiv_(mean / (1 - BETAS[0] ** step), spread, value=-rate)

    def _orthogonal(self, matrices: list[Tensor]) -> list[Tensor]:
        """Each process makes those whose turn it is, the largest first, and all get all."""
        processes, own = self._together
        order = sorted(range(len(matrices)), key=lambda i: -matrices[i].numel() * min(matrices[i].shape))
        mine = set(order[own::processes])
        made = [orthogonal(matrix) if i in mine else torch.zeros_like(matrix) for i, matrix in enumerate(matrices)]
        if processes == 1:
            return made
        flat = self._total(torch.cat([matrix.flatten() for matrix in made]))
        return [part.view_as(matrix) for part, matrix in zip(flat.split([m.numel() for m in made]), made, strict=True)]


def orthogonal(matrix: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
    """The matrix with singular values of about 1, by a Newton-Schulz iteration in bfloat16."""
    a, b, c = QUINTIC
    x = matrix.bfloat16()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)
