"""Secure aggregation as a part of the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedquilt.wire.chain import Plain


@dataclass(frozen=True)
class masked(Plain):
    """The server sees the sum over a round's clients and nothing of any one (:mod:`fedquilt.privacy.sums`).

    Engines ask ``hides``: with this part in the chain they hand over sums instead of replies. In a deployment the vectors are added
    behind pairwise masks (:mod:`fedquilt.privacy.secagg`); in a simulation, where there is nobody to hide from, as they are, with
    the same bits.
    Source: Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017.
    """

    hides: ClassVar[str] = "secure_aggregation"
