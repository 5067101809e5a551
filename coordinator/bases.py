"""The basis of any version that can be read, for those who must lift an update with its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from torch import Tensor

from coordinator.admit import base_is_gone, no_such_version
from coordinator.blobs import Blobs
from coordinator.catalog import Catalog, Version
from coordinator.errors import CoordinatorError
from share_algo import Basis
from share_algo.codec import decode_basis

BASES_MAX = 4
"""Bases of older generations that are kept in memory."""
VERSIONS_MAX = 64
"""Versions of which it is kept in memory where their basis is."""


class Bases:
    """Thread-safe. A basis is the first blocks of its generation. weights: what directions may be derived from."""

    def __init__(self, catalog: Catalog, blobs: Blobs, weights: Mapping[str, Tensor]):
        self.catalog, self._blobs, self._weights = catalog, blobs, weights
        self._newest = (0, Basis())
        self._stored = lru_cache(BASES_MAX)(self._read)
        self._known = lru_cache(VERSIONS_MAX)(self._existing)

    def of(self, number: int) -> Basis:
        """Raises Refused when there is no such version, or its basis is gone; CoordinatorError for a damaged blob.

        Of a version that has just gone it may still be there: the journal, which knows, takes no update for it.
        """
        try:
            return self.at(self._known(number))
        except CoordinatorError:
            self.must_be_readable(number)
            raise

    def behind(self, number: int) -> Basis:
        """The same for a version that may be gone: its basis stays as long as a later one of its generation does."""
        version = self._known(number)
        if version.gone and len(self.catalog.first_blocks(version.generation, version.blocks)) < version.blocks:
            base_is_gone(number, version.gone)
        return self.at(version)

    def must_be_readable(self, number: int) -> None:
        """Raises Refused for a version that is gone."""
        if why := self._existing(number).gone:
            base_is_gone(number, why)

    def _existing(self, number: int) -> Version:
        return self.catalog.get(number) or no_such_version(number)

    def at(self, version: Version) -> Basis:
        generation, newest = self._newest
        if version.generation == generation and version.blocks <= len(newest.blocks):
            return newest.prefix(version.blocks)
        return self._stored(version.generation, version.blocks)

    def remember(self, version: Version, basis: Basis) -> None:
        """The head's, so that nobody reads it from the disk."""
        self._newest = (version.generation, basis)

    def forget(self) -> None:
        """Keep nothing of what may be gone from the disk."""
        self._newest = (0, Basis())
        self._stored.cache_clear()
        self._known.cache_clear()

    def _read(self, generation: int, blocks: int) -> Basis:
        names = self.catalog.first_blocks(generation, blocks)
        if len(names) < blocks:
            raise CoordinatorError(f"generation {generation} has no longer {blocks} blocks: what needs them is gone")
        return decode_basis((self._blobs.get(name.digest) for name in names), self._weights)
