"""What federation a run is about: how tasks become one of several updates, what is kept aside, what is kept at all."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random

from google.protobuf import json_format

from protos.fedshare.v1 import federation_pb2 as pb

from .here import copy_home

SHARED = "shared"
"""The task that several workers learn."""


def draw(rng: Random, target: str) -> pb.FederationSpec:
    """What differs from one run's federation to another's. target: a step that it should often come to."""
    spec = pb.FederationSpec(policies=rng.choice((_none, _replace, _fedasync, _fedasync, _fedbuff, _fedbuff))(rng))
    if "set_aside" in target:
        del spec.policies[:]
        spec.policies.add(staleness_max=0)
    if "judge" in target or rng.random() < 0.6:
        spec.quarantine.deviations_max = rng.choice((2.0, 4.0))
        spec.quarantine.updates_min = rng.randint(1, 2)
    if rng.random() < 0.25:
        spec.budget.columns_max = rng.randint(2, 4)
        spec.budget.columns_after = spec.budget.columns_max - 1
    if rng.random() < 0.25:
        spec.versions_kept = rng.randint(1, 3)
    if rng.random() < 0.25:
        spec.start.kind, spec.start.columns = pb.START_KIND_SEED, rng.randint(1, 2)
    return spec


def policy_for(spec: pb.FederationSpec, task: str) -> pb.Policy:
    own = [policy for policy in spec.policies if policy.task == task]
    return (own or [policy for policy in spec.policies if not policy.task] or [pb.Policy()])[0]


def new_home(template: Path, folder: Path, differs: pb.FederationSpec) -> pb.FederationSpec:
    """A copy of a home that was made for a federation as `differs` says. Returns its whole spec."""
    copy_home(template, folder)
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database, database:
        [[said]] = database.execute("SELECT spec FROM federation")
        spec = json_format.Parse(said, pb.FederationSpec())
        spec.MergeFrom(differs)
        database.execute("UPDATE federation SET spec = ?", [json_format.MessageToJson(spec)])
    return spec


def _none(rng: Random) -> list[pb.Policy]:
    return []


def _replace(rng: Random) -> list[pb.Policy]:
    return [pb.Policy(task=SHARED, staleness_max=rng.randint(0, 3))]


def _fedasync(rng: Random) -> list[pb.Policy]:
    policy = pb.Policy(task=SHARED, kind=pb.POLICY_KIND_FEDASYNC, mixing=rng.choice((0.3, 0.6, 1.0)))
    return [_late(rng, policy)]


def _fedbuff(rng: Random) -> list[pb.Policy]:
    policy = pb.Policy(
        task=SHARED, kind=pb.POLICY_KIND_FEDBUFF, mixing=rng.choice((0.5, 1.0)), buffer_size=rng.randint(1, 3)
    )
    return [_late(rng, policy)]


def _late(rng: Random, policy: pb.Policy) -> pb.Policy:
    policy.task = rng.choice((SHARED, SHARED, ""))
    policy.rule = rng.choice((pb.STALENESS_RULE_CONSTANT, pb.STALENESS_RULE_HINGE, pb.STALENESS_RULE_POLYNOMIAL))
    policy.a, policy.b = rng.choice((0.5, 1.0, 2.0)), float(rng.randint(0, 2))
    if rng.random() < 0.4:
        policy.staleness_max = rng.randint(0, 3)
    return policy
