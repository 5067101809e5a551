"""Lift: read an update with the very basis it was made for, whatever was appended since.

Coefficients read in another basis are silently wrong, so an update always travels with the name of its
base version, and is first turned back into what it means.
"""

from __future__ import annotations

from share_algo.errors import AlgebraError
from share_algo.types import Adapter, Basis, Coefficients, Directions, Factors, Update


def lift(update: Update, base: Basis) -> Adapter:
    """The plain adapter that `update`, made for `base`, means. `append` then places it in any later basis.

    Raises AlgebraError when the coefficients are not exactly as wide as the base's columns and the block's.
    Cost per module: (N K + D L) R.
    """
    entry = update.entry
    factors = {m: _read(m, c, base, update) for m, c in entry.coefficients.items()}
    return Adapter(factors, entry.head, entry.settings)


def _read(module: str, coefficients: Coefficients, base: Basis, update: Update) -> Factors:
    new = update.block.get(module)
    if new is None and module not in base:
        raise AlgebraError(f"{module}: coefficients without directions, in the base version or in the update")
    columns = base[module].then(new) if new and module in base else new or base[module]
    if coefficients.widths != columns.widths:
        raise AlgebraError(
            f"{module}: coefficients for {coefficients.widths} columns, base and update have {columns.widths}"
        )
    return coefficients.read(Directions(columns.out_NK, columns.in_DL))
