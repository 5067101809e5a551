"""Whose fault it is.

WorkerError            one sentence for the worker's owner: what, where, what to do
  Refusal              the coordinator answered, and said no for good
    Superseded         because a newer incarnation of this worker has joined; the next one can deliver
  CoordinatorAway      nobody answered within the time allowed; nothing is lost, try again later
"""


class WorkerError(Exception):
    """One sentence for the worker's owner."""


class Refusal(WorkerError):
    """The coordinator's own sentence. The same request will be refused again."""


class Superseded(Refusal):
    """This life is over, its work is not: it stays in the outbox."""


class CoordinatorAway(WorkerError):
    """No answer in time. What was to be sent is still in the outbox."""
