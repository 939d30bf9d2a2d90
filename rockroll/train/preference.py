"""The loss of preferred answers, pair by pair. Pure arithmetic on tensors.

In: log-probs of whole answers under the policy and a frozen reference. Out: a loss a pair, and the rewards that the
policy stands for by it. Leaves which token is of which answer to objectives/dpo.py.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(
    chosen: Tensor, rejected: Tensor, chosen_reference: Tensor, rejected_reference: Tensor, *, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Direct preference optimization (arXiv 2305.18290, eq. 7), with the rewards that eq. 5 reads from a policy.

    chosen, rejected: [pairs] log π(y|x), nats, summed over the answer's tokens, with gradient. *_reference: [pairs]
    log π_ref(y|x). With r(y) = beta · (log π(y|x) - log π_ref(y|x)):
        loss = -log σ(r(chosen) - r(rejected))
    Returns ([pairs] loss, [pairs] r(chosen), [pairs] r(rejected)).
    """
    better, worse = beta * (chosen - chosen_reference), beta * (rejected - rejected_reference)
    return -logsigmoid(better - worse), better, worse
