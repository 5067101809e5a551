from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PolicyKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_KIND_REPLACE: _ClassVar[PolicyKind]
    POLICY_KIND_FEDASYNC: _ClassVar[PolicyKind]
    POLICY_KIND_FEDBUFF: _ClassVar[PolicyKind]

class StalenessRule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STALENESS_RULE_CONSTANT: _ClassVar[StalenessRule]
    STALENESS_RULE_HINGE: _ClassVar[StalenessRule]
    STALENESS_RULE_POLYNOMIAL: _ClassVar[StalenessRule]

class StartKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    START_KIND_EMPTY: _ClassVar[StartKind]
    START_KIND_SEED: _ClassVar[StartKind]
    START_KIND_WEIGHTS: _ClassVar[StartKind]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_QUEUED: _ClassVar[Outcome]
    OUTCOME_MERGED: _ClassVar[Outcome]
    OUTCOME_SKIPPED: _ClassVar[Outcome]
    OUTCOME_REVERTED: _ClassVar[Outcome]
    OUTCOME_ERASED: _ClassVar[Outcome]
    OUTCOME_DONE: _ClassVar[Outcome]
    OUTCOME_BUFFERED: _ClassVar[Outcome]
    OUTCOME_QUARANTINED: _ClassVar[Outcome]
    OUTCOME_REJECTED: _ClassVar[Outcome]
    OUTCOME_REFUSED_MALFORMED: _ClassVar[Outcome]
    OUTCOME_REFUSED_TOO_LARGE: _ClassVar[Outcome]
    OUTCOME_REFUSED_FEDERATION: _ClassVar[Outcome]
    OUTCOME_REFUSED_BASE_MODEL: _ClassVar[Outcome]
    OUTCOME_REFUSED_BASE_VERSION: _ClassVar[Outcome]
    OUTCOME_REFUSED_INCARNATION: _ClassVar[Outcome]
    OUTCOME_REFUSED_SHAPE: _ClassVar[Outcome]
    OUTCOME_REFUSED_ID_REUSED: _ClassVar[Outcome]
    OUTCOME_REFUSED_BASE_GONE: _ClassVar[Outcome]
    OUTCOME_REFUSED_LABELS: _ClassVar[Outcome]
    OUTCOME_RETRY_DISK_FULL: _ClassVar[Outcome]
    OUTCOME_RETRY_DIGEST: _ClassVar[Outcome]
    OUTCOME_RETRY_BUSY: _ClassVar[Outcome]
    OUTCOME_RETRY_STORE: _ClassVar[Outcome]
    OUTCOME_SUPERSEDED: _ClassVar[Outcome]
    OUTCOME_TOO_STALE: _ClassVar[Outcome]

class VersionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERSION_KIND_UNSPECIFIED: _ClassVar[VersionKind]
    VERSION_KIND_MERGE: _ClassVar[VersionKind]
    VERSION_KIND_ROLLBACK: _ClassVar[VersionKind]
    VERSION_KIND_FORGET: _ClassVar[VersionKind]
    VERSION_KIND_COMPACT: _ClassVar[VersionKind]
POLICY_KIND_REPLACE: PolicyKind
POLICY_KIND_FEDASYNC: PolicyKind
POLICY_KIND_FEDBUFF: PolicyKind
STALENESS_RULE_CONSTANT: StalenessRule
STALENESS_RULE_HINGE: StalenessRule
STALENESS_RULE_POLYNOMIAL: StalenessRule
START_KIND_EMPTY: StartKind
START_KIND_SEED: StartKind
START_KIND_WEIGHTS: StartKind
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_QUEUED: Outcome
OUTCOME_MERGED: Outcome
OUTCOME_SKIPPED: Outcome
OUTCOME_REVERTED: Outcome
OUTCOME_ERASED: Outcome
OUTCOME_DONE: Outcome
OUTCOME_BUFFERED: Outcome
OUTCOME_QUARANTINED: Outcome
OUTCOME_REJECTED: Outcome
OUTCOME_REFUSED_MALFORMED: Outcome
OUTCOME_REFUSED_TOO_LARGE: Outcome
OUTCOME_REFUSED_FEDERATION: Outcome
OUTCOME_REFUSED_BASE_MODEL: Outcome
OUTCOME_REFUSED_BASE_VERSION: Outcome
OUTCOME_REFUSED_INCARNATION: Outcome
OUTCOME_REFUSED_SHAPE: Outcome
OUTCOME_REFUSED_ID_REUSED: Outcome
OUTCOME_REFUSED_BASE_GONE: Outcome
OUTCOME_REFUSED_LABELS: Outcome
OUTCOME_RETRY_DISK_FULL: Outcome
OUTCOME_RETRY_DIGEST: Outcome
OUTCOME_RETRY_BUSY: Outcome
OUTCOME_RETRY_STORE: Outcome
OUTCOME_SUPERSEDED: Outcome
OUTCOME_TOO_STALE: Outcome
VERSION_KIND_UNSPECIFIED: VersionKind
VERSION_KIND_MERGE: VersionKind
VERSION_KIND_ROLLBACK: VersionKind
VERSION_KIND_FORGET: VersionKind
VERSION_KIND_COMPACT: VersionKind

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FederationSpec(_message.Message):
    __slots__ = ("federation_id", "name", "base", "modules", "rank", "tolerance", "seed", "directions", "recipe", "policies", "quarantine", "budget", "versions_kept", "start")
    FEDERATION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_KEPT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    federation_id: str
    name: str
    base: BaseModel
    modules: _containers.RepeatedCompositeFieldContainer[TargetModule]
    rank: int
    tolerance: float
    seed: int
    directions: Directions
    recipe: Recipe
    policies: _containers.RepeatedCompositeFieldContainer[Policy]
    quarantine: Quarantine
    budget: Budget
    versions_kept: int
    start: Start
    def __init__(self, federation_id: _Optional[str] = ..., name: _Optional[str] = ..., base: _Optional[_Union[BaseModel, _Mapping]] = ..., modules: _Optional[_Iterable[_Union[TargetModule, _Mapping]]] = ..., rank: _Optional[int] = ..., tolerance: _Optional[float] = ..., seed: _Optional[int] = ..., directions: _Optional[_Union[Directions, _Mapping]] = ..., recipe: _Optional[_Union[Recipe, _Mapping]] = ..., policies: _Optional[_Iterable[_Union[Policy, _Mapping]]] = ..., quarantine: _Optional[_Union[Quarantine, _Mapping]] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., versions_kept: _Optional[int] = ..., start: _Optional[_Union[Start, _Mapping]] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("task", "kind", "mixing", "rule", "a", "b", "buffer_size", "staleness_max")
    TASK_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MIXING_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    A_FIELD_NUMBER: _ClassVar[int]
    B_FIELD_NUMBER: _ClassVar[int]
    BUFFER_SIZE_FIELD_NUMBER: _ClassVar[int]
    STALENESS_MAX_FIELD_NUMBER: _ClassVar[int]
    task: str
    kind: PolicyKind
    mixing: float
    rule: StalenessRule
    a: float
    b: float
    buffer_size: int
    staleness_max: int
    def __init__(self, task: _Optional[str] = ..., kind: _Optional[_Union[PolicyKind, str]] = ..., mixing: _Optional[float] = ..., rule: _Optional[_Union[StalenessRule, str]] = ..., a: _Optional[float] = ..., b: _Optional[float] = ..., buffer_size: _Optional[int] = ..., staleness_max: _Optional[int] = ...) -> None: ...

class Quarantine(_message.Message):
    __slots__ = ("deviations_max", "updates_min")
    DEVIATIONS_MAX_FIELD_NUMBER: _ClassVar[int]
    UPDATES_MIN_FIELD_NUMBER: _ClassVar[int]
    deviations_max: float
    updates_min: int
    def __init__(self, deviations_max: _Optional[float] = ..., updates_min: _Optional[int] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("kind", "columns")
    KIND_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    kind: StartKind
    columns: int
    def __init__(self, kind: _Optional[_Union[StartKind, str]] = ..., columns: _Optional[int] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("columns_max", "columns_after")
    COLUMNS_MAX_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_AFTER_FIELD_NUMBER: _ClassVar[int]
    columns_max: int
    columns_after: int
    def __init__(self, columns_max: _Optional[int] = ..., columns_after: _Optional[int] = ...) -> None: ...

class BaseModel(_message.Message):
    __slots__ = ("name", "fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class TargetModule(_message.Message):
    __slots__ = ("name", "out_features", "in_features")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OUT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    IN_FEATURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    out_features: int
    in_features: int
    def __init__(self, name: _Optional[str] = ..., out_features: _Optional[int] = ..., in_features: _Optional[int] = ...) -> None: ...

class Directions(_message.Message):
    __slots__ = ("first", "tolerance", "bits")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    first: int
    tolerance: float
    bits: int
    def __init__(self, first: _Optional[int] = ..., tolerance: _Optional[float] = ..., bits: _Optional[int] = ...) -> None: ...

class Recipe(_message.Message):
    __slots__ = ("epochs", "batch_size", "tokens_max", "learning_rate", "learning_rate_directions", "learning_rate_head", "scaling", "recovery", "warm_starts", "probe_examples")
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_MAX_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_HEAD_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_FIELD_NUMBER: _ClassVar[int]
    WARM_STARTS_FIELD_NUMBER: _ClassVar[int]
    PROBE_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    epochs: float
    batch_size: int
    tokens_max: int
    learning_rate: float
    learning_rate_directions: float
    learning_rate_head: float
    scaling: float
    recovery: float
    warm_starts: int
    probe_examples: int
    def __init__(self, epochs: _Optional[float] = ..., batch_size: _Optional[int] = ..., tokens_max: _Optional[int] = ..., learning_rate: _Optional[float] = ..., learning_rate_directions: _Optional[float] = ..., learning_rate_head: _Optional[float] = ..., scaling: _Optional[float] = ..., recovery: _Optional[float] = ..., warm_starts: _Optional[int] = ..., probe_examples: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("worker", "task", "federation_id", "base_fingerprint")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    worker: str
    task: str
    federation_id: str
    base_fingerprint: str
    def __init__(self, worker: _Optional[str] = ..., task: _Optional[str] = ..., federation_id: _Optional[str] = ..., base_fingerprint: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("federation_id", "incarnation", "head", "learned")
    FEDERATION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    LEARNED_FIELD_NUMBER: _ClassVar[int]
    federation_id: str
    incarnation: int
    head: int
    learned: Verdict
    def __init__(self, federation_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., head: _Optional[int] = ..., learned: _Optional[_Union[Verdict, _Mapping]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("update_id", "federation_id", "worker", "incarnation", "task", "base_version", "base_fingerprint", "digest", "nbytes", "labels", "metrics", "warm_start")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    WARM_START_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    federation_id: str
    worker: str
    incarnation: int
    task: str
    base_version: int
    base_fingerprint: str
    digest: str
    nbytes: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    metrics: _containers.ScalarMap[str, float]
    warm_start: str
    def __init__(self, update_id: _Optional[str] = ..., federation_id: _Optional[str] = ..., worker: _Optional[str] = ..., incarnation: _Optional[int] = ..., task: _Optional[str] = ..., base_version: _Optional[int] = ..., base_fingerprint: _Optional[str] = ..., digest: _Optional[str] = ..., nbytes: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., warm_start: _Optional[str] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("update_id", "outcome", "is_transient", "reason", "position", "repeated", "version")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    IS_TRANSIENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    outcome: Outcome
    is_transient: bool
    reason: str
    position: int
    repeated: bool
    version: int
    def __init__(self, update_id: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., is_transient: bool = ..., reason: _Optional[str] = ..., position: _Optional[int] = ..., repeated: bool = ..., version: _Optional[int] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("update_id", "outcome", "reason", "position", "version", "relative_error", "weight")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_ERROR_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    outcome: Outcome
    reason: str
    position: int
    version: int
    relative_error: float
    weight: float
    def __init__(self, update_id: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., reason: _Optional[str] = ..., position: _Optional[int] = ..., version: _Optional[int] = ..., relative_error: _Optional[float] = ..., weight: _Optional[float] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("worker", "incarnation")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    worker: str
    incarnation: int
    def __init__(self, worker: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class VersionNotice(_message.Message):
    __slots__ = ("version", "parent", "digest", "task", "consumed_position")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CONSUMED_POSITION_FIELD_NUMBER: _ClassVar[int]
    version: int
    parent: int
    digest: str
    task: str
    consumed_position: int
    def __init__(self, version: _Optional[int] = ..., parent: _Optional[int] = ..., digest: _Optional[str] = ..., task: _Optional[str] = ..., consumed_position: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("version", "tasks", "every_task", "have", "manifest_only")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    EVERY_TASK_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_ONLY_FIELD_NUMBER: _ClassVar[int]
    version: int
    tasks: _containers.RepeatedScalarFieldContainer[str]
    every_task: bool
    have: _containers.RepeatedScalarFieldContainer[str]
    manifest_only: bool
    def __init__(self, version: _Optional[int] = ..., tasks: _Optional[_Iterable[str]] = ..., every_task: bool = ..., have: _Optional[_Iterable[str]] = ..., manifest_only: bool = ...) -> None: ...

class FetchReply(_message.Message):
    __slots__ = ("manifest", "blob", "chunk")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    manifest: Manifest
    blob: BlobRef
    chunk: bytes
    def __init__(self, manifest: _Optional[_Union[Manifest, _Mapping]] = ..., blob: _Optional[_Union[BlobRef, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("version", "parent", "generation", "digest", "blocks", "tasks")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    version: int
    parent: int
    generation: int
    digest: str
    blocks: _containers.RepeatedCompositeFieldContainer[BlobRef]
    tasks: _containers.RepeatedCompositeFieldContainer[TaskRef]
    def __init__(self, version: _Optional[int] = ..., parent: _Optional[int] = ..., generation: _Optional[int] = ..., digest: _Optional[str] = ..., blocks: _Optional[_Iterable[_Union[BlobRef, _Mapping]]] = ..., tasks: _Optional[_Iterable[_Union[TaskRef, _Mapping]]] = ...) -> None: ...

class BlobRef(_message.Message):
    __slots__ = ("digest", "nbytes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    nbytes: int
    def __init__(self, digest: _Optional[str] = ..., nbytes: _Optional[int] = ...) -> None: ...

class TaskRef(_message.Message):
    __slots__ = ("task", "entry", "version", "labels", "relative_error", "is_bound")
    TASK_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_ERROR_FIELD_NUMBER: _ClassVar[int]
    IS_BOUND_FIELD_NUMBER: _ClassVar[int]
    task: str
    entry: BlobRef
    version: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    relative_error: float
    is_bound: bool
    def __init__(self, task: _Optional[str] = ..., entry: _Optional[_Union[BlobRef, _Mapping]] = ..., version: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., relative_error: _Optional[float] = ..., is_bound: bool = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("worker", "incarnation", "task", "version", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    WORKER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    incarnation: int
    task: str
    version: int
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, worker: _Optional[str] = ..., incarnation: _Optional[int] = ..., task: _Optional[str] = ..., version: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("worker", "incarnation")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    worker: str
    incarnation: int
    def __init__(self, worker: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StoryRequest(_message.Message):
    __slots__ = ("update_id",)
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    def __init__(self, update_id: _Optional[str] = ...) -> None: ...

class StoryReply(_message.Message):
    __slots__ = ("update_id", "events", "verdict")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    events: _containers.RepeatedCompositeFieldContainer[StoryEvent]
    verdict: Verdict
    def __init__(self, update_id: _Optional[str] = ..., events: _Optional[_Iterable[_Union[StoryEvent, _Mapping]]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ...) -> None: ...

class StoryEvent(_message.Message):
    __slots__ = ("at", "what", "detail")
    AT_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    at: float
    what: str
    detail: str
    def __init__(self, at: _Optional[float] = ..., what: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("spec", "head", "queued", "merged", "skipped", "members", "bytes_basis", "bytes_tasks", "lineage", "lineage_behind", "reverted", "erased", "buffered", "quarantined", "generation", "waiting", "rejected", "superseded", "too_stale", "commands_queued")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    MERGED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_BASIS_FIELD_NUMBER: _ClassVar[int]
    BYTES_TASKS_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_BEHIND_FIELD_NUMBER: _ClassVar[int]
    REVERTED_FIELD_NUMBER: _ClassVar[int]
    ERASED_FIELD_NUMBER: _ClassVar[int]
    BUFFERED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    TOO_STALE_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_QUEUED_FIELD_NUMBER: _ClassVar[int]
    spec: FederationSpec
    head: int
    queued: int
    merged: int
    skipped: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    bytes_basis: int
    bytes_tasks: int
    lineage: str
    lineage_behind: int
    reverted: int
    erased: int
    buffered: int
    quarantined: int
    generation: int
    waiting: str
    rejected: int
    superseded: int
    too_stale: int
    commands_queued: int
    def __init__(self, spec: _Optional[_Union[FederationSpec, _Mapping]] = ..., head: _Optional[int] = ..., queued: _Optional[int] = ..., merged: _Optional[int] = ..., skipped: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., bytes_basis: _Optional[int] = ..., bytes_tasks: _Optional[int] = ..., lineage: _Optional[str] = ..., lineage_behind: _Optional[int] = ..., reverted: _Optional[int] = ..., erased: _Optional[int] = ..., buffered: _Optional[int] = ..., quarantined: _Optional[int] = ..., generation: _Optional[int] = ..., waiting: _Optional[str] = ..., rejected: _Optional[int] = ..., superseded: _Optional[int] = ..., too_stale: _Optional[int] = ..., commands_queued: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("worker", "task", "incarnation", "joined_at", "left_at")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    JOINED_AT_FIELD_NUMBER: _ClassVar[int]
    LEFT_AT_FIELD_NUMBER: _ClassVar[int]
    worker: str
    task: str
    incarnation: int
    joined_at: float
    left_at: float
    def __init__(self, worker: _Optional[str] = ..., task: _Optional[str] = ..., incarnation: _Optional[int] = ..., joined_at: _Optional[float] = ..., left_at: _Optional[float] = ...) -> None: ...

class VersionsRequest(_message.Message):
    __slots__ = ("first", "limit")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    first: int
    limit: int
    def __init__(self, first: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class VersionsReply(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[VersionRecord]
    def __init__(self, versions: _Optional[_Iterable[_Union[VersionRecord, _Mapping]]] = ...) -> None: ...

class VersionRecord(_message.Message):
    __slots__ = ("version", "parent", "generation", "digest", "created_at", "task", "worker", "update_id", "base_version", "staleness", "relative_error", "relative_error_max", "new_out", "new_in", "basis_out", "basis_in", "bytes_sent", "bytes_lora", "metrics", "kind", "note", "gone", "weight", "norm", "largest_error", "warm_start")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_ERROR_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_ERROR_MAX_FIELD_NUMBER: _ClassVar[int]
    NEW_OUT_FIELD_NUMBER: _ClassVar[int]
    NEW_IN_FIELD_NUMBER: _ClassVar[int]
    BASIS_OUT_FIELD_NUMBER: _ClassVar[int]
    BASIS_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_LORA_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    LARGEST_ERROR_FIELD_NUMBER: _ClassVar[int]
    WARM_START_FIELD_NUMBER: _ClassVar[int]
    version: int
    parent: int
    generation: int
    digest: str
    created_at: float
    task: str
    worker: str
    update_id: str
    base_version: int
    staleness: int
    relative_error: float
    relative_error_max: float
    new_out: int
    new_in: int
    basis_out: int
    basis_in: int
    bytes_sent: int
    bytes_lora: int
    metrics: _containers.ScalarMap[str, float]
    kind: VersionKind
    note: str
    gone: str
    weight: float
    norm: float
    largest_error: float
    warm_start: str
    def __init__(self, version: _Optional[int] = ..., parent: _Optional[int] = ..., generation: _Optional[int] = ..., digest: _Optional[str] = ..., created_at: _Optional[float] = ..., task: _Optional[str] = ..., worker: _Optional[str] = ..., update_id: _Optional[str] = ..., base_version: _Optional[int] = ..., staleness: _Optional[int] = ..., relative_error: _Optional[float] = ..., relative_error_max: _Optional[float] = ..., new_out: _Optional[int] = ..., new_in: _Optional[int] = ..., basis_out: _Optional[int] = ..., basis_in: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., bytes_lora: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., kind: _Optional[_Union[VersionKind, str]] = ..., note: _Optional[str] = ..., gone: _Optional[str] = ..., weight: _Optional[float] = ..., norm: _Optional[float] = ..., largest_error: _Optional[float] = ..., warm_start: _Optional[str] = ...) -> None: ...

class MetricsRequest(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: str
    def __init__(self, task: _Optional[str] = ...) -> None: ...

class MetricsReply(_message.Message):
    __slots__ = ("metrics",)
    METRICS_FIELD_NUMBER: _ClassVar[int]
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    def __init__(self, metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("worker", "task", "version", "name", "value", "at")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    worker: str
    task: str
    version: int
    name: str
    value: float
    at: float
    def __init__(self, worker: _Optional[str] = ..., task: _Optional[str] = ..., version: _Optional[int] = ..., name: _Optional[str] = ..., value: _Optional[float] = ..., at: _Optional[float] = ...) -> None: ...

class CommandRequest(_message.Message):
    __slots__ = ("command_id", "rollback", "forget", "compact", "judge", "collect")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    COMPACT_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    COLLECT_FIELD_NUMBER: _ClassVar[int]
    command_id: str
    rollback: Rollback
    forget: Forget
    compact: Compact
    judge: Judge
    collect: Collect
    def __init__(self, command_id: _Optional[str] = ..., rollback: _Optional[_Union[Rollback, _Mapping]] = ..., forget: _Optional[_Union[Forget, _Mapping]] = ..., compact: _Optional[_Union[Compact, _Mapping]] = ..., judge: _Optional[_Union[Judge, _Mapping]] = ..., collect: _Optional[_Union[Collect, _Mapping]] = ...) -> None: ...

class Rollback(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class Forget(_message.Message):
    __slots__ = ("task", "worker", "erase")
    TASK_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ERASE_FIELD_NUMBER: _ClassVar[int]
    task: str
    worker: str
    erase: bool
    def __init__(self, task: _Optional[str] = ..., worker: _Optional[str] = ..., erase: bool = ...) -> None: ...

class Compact(_message.Message):
    __slots__ = ("size", "tolerance")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    size: int
    tolerance: float
    def __init__(self, size: _Optional[int] = ..., tolerance: _Optional[float] = ...) -> None: ...

class Judge(_message.Message):
    __slots__ = ("update_id", "accept")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    accept: bool
    def __init__(self, update_id: _Optional[str] = ..., accept: bool = ...) -> None: ...

class Collect(_message.Message):
    __slots__ = ("keep",)
    KEEP_FIELD_NUMBER: _ClassVar[int]
    keep: int
    def __init__(self, keep: _Optional[int] = ...) -> None: ...

class QuarantinedRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class QuarantinedReply(_message.Message):
    __slots__ = ("updates",)
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    updates: _containers.RepeatedCompositeFieldContainer[Aside]
    def __init__(self, updates: _Optional[_Iterable[_Union[Aside, _Mapping]]] = ...) -> None: ...

class Aside(_message.Message):
    __slots__ = ("update_id", "worker", "task", "position", "received_at", "reason")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    worker: str
    task: str
    position: int
    received_at: float
    reason: str
    def __init__(self, update_id: _Optional[str] = ..., worker: _Optional[str] = ..., task: _Optional[str] = ..., position: _Optional[int] = ..., received_at: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class ReplayRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReplayReply(_message.Message):
    __slots__ = ("versions", "tasks", "task", "basis", "first")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    versions: int
    tasks: int
    task: Difference
    basis: Difference
    first: int
    def __init__(self, versions: _Optional[int] = ..., tasks: _Optional[int] = ..., task: _Optional[_Union[Difference, _Mapping]] = ..., basis: _Optional[_Union[Difference, _Mapping]] = ..., first: _Optional[int] = ...) -> None: ...

class Difference(_message.Message):
    __slots__ = ("value", "version", "where")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    value: float
    version: int
    where: str
    def __init__(self, value: _Optional[float] = ..., version: _Optional[int] = ..., where: _Optional[str] = ...) -> None: ...
