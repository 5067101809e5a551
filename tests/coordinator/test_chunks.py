"""What is cut and joined is the same, a blob or an answer, and a joiner holds no more than was announced."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.chunks import BLOB_BYTES_MAX, CHUNK_BYTES_MAX, Joiner, cut, digest_of, in_pieces, joined
from protos.fedshare.v1 import federation_pb2 as pb

SIZES = [0, 1, CHUNK_BYTES_MAX - 1, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX + 1, 2 * CHUNK_BYTES_MAX, 3 * CHUNK_BYTES_MAX + 7]


def patterned(nbytes: int) -> bytes:
    return (bytes(range(251)) * (nbytes // 251 + 1))[:nbytes]


@pytest.mark.parametrize("nbytes", SIZES)
def test_what_is_cut_and_joined_is_the_same(nbytes: int):
    blob = patterned(nbytes)
    joiner = Joiner(digest_of(blob), nbytes)
    for chunk in cut(blob):
        assert not joiner.complete
        joiner.add(chunk)
    assert joiner.complete and joiner.blob() == blob


@pytest.mark.parametrize("nbytes", SIZES)
def test_no_chunk_is_empty_or_larger_than_the_bound(nbytes: int):
    sizes = [len(chunk) for chunk in cut(patterned(nbytes))]
    assert sum(sizes) == nbytes and len(sizes) == -(-nbytes // CHUNK_BYTES_MAX)
    assert all(0 < size <= CHUNK_BYTES_MAX for size in sizes)


def test_joiner_refuses_a_chunk_above_the_bound():
    with pytest.raises(ValueError, match=f"at most {CHUNK_BYTES_MAX}"):
        Joiner("", 2 * CHUNK_BYTES_MAX).add(bytes(CHUNK_BYTES_MAX + 1))


def test_joiner_refuses_an_empty_chunk_so_that_a_stream_of_them_ends():
    with pytest.raises(ValueError, match="empty"):
        Joiner("", 10).add(b"")


def test_joiner_refuses_to_begin_a_blob_above_the_bound():
    Joiner("", BLOB_BYTES_MAX)
    with pytest.raises(ValueError, match=f"at most {BLOB_BYTES_MAX}"):
        Joiner("", BLOB_BYTES_MAX + 1)


@given(st.integers(1, 50), st.lists(st.binary(min_size=1, max_size=20), max_size=10))
def test_joiner_never_holds_more_than_was_announced(nbytes: int, chunks: list[bytes]):
    joiner, held = Joiner("", nbytes), 0
    for chunk in chunks:
        if held + len(chunk) > nbytes:
            with pytest.raises(ValueError, match=f"more than the announced {nbytes} bytes"):
                joiner.add(chunk)
            return
        joiner.add(chunk)
        held += len(chunk)
        assert joiner.complete == (held == nbytes)


def test_joiner_takes_no_more_memory_for_small_chunks_and_none_for_what_is_only_announced():
    tracemalloc.start()
    try:
        joiner, count = Joiner("", BLOB_BYTES_MAX), 100_000
        for n in range(count):
            joiner.add(n.to_bytes(2, "big") if n < 1 << 16 else b"ab")
        assert tracemalloc.get_traced_memory()[1] < 4 * 2 * count
    finally:
        tracemalloc.stop()


def test_joiner_gives_no_bytes_that_do_not_have_the_digest():
    joiner = Joiner(digest_of(b"right"), 5)
    joiner.add(b"wrong")
    with pytest.raises(ValueError, match="announced digest"):
        joiner.blob()


def test_joiner_gives_no_bytes_before_all_have_come():
    joiner = Joiner(digest_of(b"right"), 5)
    joiner.add(b"rig")
    with pytest.raises(ValueError, match="3 of the announced 5"):
        joiner.blob()


@pytest.mark.parametrize("blocks, tasks, labels", [(0, 0, 0), (3, 2, 2), (40_000, 0, 0), (9, 500, 300), (0, 3, 20_000)])
def test_answer_that_comes_in_pieces_is_the_same(blocks: int, tasks: int, labels: int):
    whole = pb.Manifest(
        version=7,
        digest="d" * 64,
        blocks=[pb.BlobRef(digest=f"{n:064x}", nbytes=n) for n in range(blocks)],
        tasks=[pb.TaskRef(task=f"task-{n}", labels=["label " * 10] * labels, is_bound=True) for n in range(tasks)],
    )
    pieces = list(in_pieces(whole))
    assert joined(pb.Manifest(), pieces) == whole
    alone = [piece for piece in pieces if len(piece.blocks) + len(piece.tasks) <= 1]  # an entry may be larger by itself
    assert all(piece.ByteSize() <= CHUNK_BYTES_MAX for piece in pieces if piece not in alone)
    assert len(pieces) <= 1 + max(len(alone), 2 * whole.ByteSize() // CHUNK_BYTES_MAX)


def test_first_piece_has_what_is_said_once():
    whole = pb.StatusReply(spec=pb.FederationSpec(name="x"), head=3, waiting="why")
    whole.members.extend(pb.Member(worker="w" * 100, task="t" * 100, incarnation=n) for n in range(10_000))
    pieces = list(in_pieces(whole))
    assert len(pieces) > 1 and (pieces[0].head, pieces[0].spec.name, pieces[0].waiting) == (3, "x", "why")
    assert joined(pb.StatusReply(), pieces) == whole
