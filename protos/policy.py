"""Which policy of a federation a task has: read alike on both sides."""

from __future__ import annotations

from collections.abc import Iterable

from protos.fedshare.v1.federation_pb2 import POLICY_KIND_FEDBUFF, POLICY_KIND_REPLACE, Policy


def policy_of(policies: Iterable[Policy], task: str) -> Policy:
    """The task's own, else the one for all others, else the newest update replaces the task."""
    by_task = {policy.task: policy for policy in policies}
    return by_task.get(task) or by_task.get("") or Policy()


def replaces(policy: Policy) -> bool:
    """The newest update is the task, whatever it was before."""
    return policy.kind == POLICY_KIND_REPLACE


def gathers(policy: Policy) -> bool:
    """Updates wait for one another, and count as differences from what the task was in their base versions."""
    return policy.kind == POLICY_KIND_FEDBUFF
