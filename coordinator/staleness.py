"""What an update weighs by its staleness, as the papers write it. Pure.

FedAsync (arXiv:1903.03934, section 5): constant 1; hinge 1 if tau <= b, else 1 / (a (tau - b) + 1); polynomial
(tau + 1)^-a. FedBuff (arXiv:2106.06639, section 5.1): 1 / sqrt(1 + tau), which is the polynomial with a = 1/2.
"""

from __future__ import annotations

from protos.fedshare.v1 import federation_pb2 as pb


def weight(policy: pb.Policy, staleness: int) -> float:
    """In (0, 1]: 1 for a fresh update, never more for an older one."""
    if policy.rule == pb.STALENESS_RULE_HINGE:
        late = staleness - policy.b
        return 1.0 if late <= 0 else 1 / (policy.a * late + 1)
    if policy.rule == pb.STALENESS_RULE_POLYNOMIAL:
        return float((staleness + 1) ** -policy.a)
    return 1.0


def share(policy: pb.Policy, staleness: int) -> float:
    """What the update is multiplied with: FedAsync's alpha_t = alpha s(tau), FedBuff's server rate times s(tau)."""
    return policy.mixing * weight(policy, staleness)


def too_stale(policy: pb.Policy, staleness: int) -> str:
    """Why the policy takes no update that is so stale; empty where it does."""
    if not policy.HasField("staleness_max") or staleness <= policy.staleness_max:
        return ""
    return f"{staleness} versions since its base version, and its task takes {policy.staleness_max} at most"
