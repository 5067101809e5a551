"""Fixtures that several rooms share. The parts themselves are in parts.py."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from parts import (
    WORDS,
    Coordinator,
    CoordinatorHere,
    Walk,
    federation_text,
    sentences,
    small_home,
    small_spec,
    write_task_file,
)
from servers import S3, Postgres, postgres_binaries

from coordinator.home import open_home
from protos.fedshare.v1 import federation_pb2 as pb

DISK_BYTES = 8 << 20
TASKS = {"colour": ("red", "green"), "animal": ("cat", "dog"), "number": ("one", "two")}


def pytest_configure() -> None:
    """Before anything is imported that reads it: no test asks a model hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    settings.register_profile("untimed", deadline=None)  # a slow machine is not a failure
    settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Subprocesses find this project; nothing is left in the user's caches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        folders = [*map(str, Path(__file__).parents[:2]), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        patch.setenv("FEDSHARE_CACHE", "")
        patch.setenv("GRPC_VERBOSITY", "NONE")  # as `fedshare` does before it imports gRPC; forks.py's server has it
        patch.delenv("FEDSHARE_COORDINATOR", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> Iterator[None]:
    """A shell lets what it starts in the background ignore them, and children inherit that: ours heed them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with two layers of 32, and a tokenizer that knows WORDS: a base model in a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("base")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=32,
    ).save_pretrained(folder)  # fmt: skip
    config = BertConfig(
        vocab_size=len(special) + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the TASKS, 40 sentences each: which of two words a sentence holds."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, labels in TASKS.items():
        for split, count in (("train", 32), ("test", 8)):
            write_task_file(folder / name / f"{split}.csv", sentences(f"{name}/{split}", labels, count))
    return folder


@pytest.fixture(scope="session")
def federation_toml(tiny_base: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation file for the tiny base model and the TASKS."""
    file = tmp_path_factory.mktemp("federation") / "federation.toml"
    file.write_text(federation_text(tiny_base, tasks))
    return file


@pytest.fixture(scope="session")
def tiny_spec(federation_toml: Path) -> pb.FederationSpec:
    """What a coordinator makes of that file."""
    from fedshare.federation_file import read_federation_file

    return read_federation_file(federation_toml).spec()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Coordinator]:
    """A coordinator of one test's own, for updates made by hand."""
    with Coordinator(small_home(tmp_path / "home"), "--no-lineage") as coordinator:
        yield coordinator


@pytest.fixture
def here(tmp_path: Path) -> Iterator[CoordinatorHere]:
    """The same in this process: for tests that kill nothing."""
    with CoordinatorHere(small_home(tmp_path / "home")) as coordinator:
        yield coordinator


@pytest.fixture(scope="module")
def shared_small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """The same for all tests of a module: for those that leave it as it was, or do not mind."""
    with Coordinator(small_home(tmp_path_factory.mktemp("small") / "home"), "--no-lineage") as coordinator:
        yield coordinator


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of DISK_BYTES, mounted for one test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={DISK_BYTES}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk of limited size can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of this test run's own."""
    if postgres_binaries() is None:
        pytest.skip("PostgreSQL is not installed here (on Debian and Ubuntu the package postgresql)")
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def migrated(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of a small federation in which nothing has happened: to copy costs less than to migrate."""
    store = postgres.database()
    with open_home(tmp_path_factory.mktemp("migrated"), small_spec(), store=store):
        return store


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A server that speaks S3, which s3:// means for the rest of this test run."""
    with S3() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.make_bucket()
        yield server


@pytest.fixture(params=["sqlite and files", "postgresql and s3"])
def place(request: pytest.FixtureRequest) -> dict[str, str]:
    """Options of `open_home` for a new store of each kind."""
    if request.param == "sqlite and files":
        return {}
    store, bucket = request.getfixturevalue("postgres"), request.getfixturevalue("s3")
    return {"store": store.database(request.getfixturevalue("migrated")), "blobs": bucket.folder()}


@pytest.fixture(scope="session")
def walk(federation_toml: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """Colour and animal were learned in turn; then colour's worker came back and measured the head."""
    folder = tmp_path_factory.mktemp("walk")
    with Coordinator(folder / "home", "--no-lineage", str(federation_toml)) as coordinator:
        walk = Walk(coordinator, tasks, folder / "workers")
        walk.led = [walk.lead("colour"), walk.lead("animal"), walk.lead("colour")]
        yield walk
