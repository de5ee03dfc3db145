"""What secure aggregation costs: seconds and bytes of a client and of the server.

    python benchmarks/secagg.py [--clients 10 30 100] [--numbers 37000 295000] [--leaving 0 0.1]

All parties in one process, one after the other; ``leaving``: the share of clients that go after they have shared their secrets,
whose masks the server has to take out. Bytes of a client are keys, encrypted shares both ways, the masked vector and what it opens;
plain: the vector in float32. The sum is compared with the one in the clear.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fedquilt.privacy import fixed
from fedquilt.privacy.secagg import Client, Server
from fedquilt.privacy.sums import least

BITS = 32


class Watch:
    """Seconds inside its blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count this block."""
        begin = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begin


def measure(n: int, numbers: int, leaving: float) -> list[str]:
    """One line of the table."""
    stream, threshold, session = np.random.default_rng(0), least(n), b"benchmark"
    x = {c: stream.normal(0, 0.02, numbers) for c in range(1, n + 1)}
    staying = sorted(x)[: n - math.floor(n * leaving)]
    client, server, bytes_ = Watch(), Watch(), 0
    with client.running():
        parties = {c: Client(c, session, threshold) for c in x}
        keys = {c: party.keys() for c, party in parties.items()}
    hub = Server(session, threshold)
    with server.running():
        everybody = hub.collect_keys(keys)
    with client.running():
        shares = {c: party.shares(everybody) for c, party in parties.items()}
    with server.running():
        routed = hub.route(shares)
    with client.running():
        masked = {c: parties[c].masked(fixed.encode(x[c], bits=BITS, contributors=n), routed[c]) for c in staying}
        opened = {c: parties[c].unmask(masked) for c in staying}
    with server.running():
        total = fixed.decode(hub.total(masked, opened), bits=BITS)
    clear = np.sum([fixed.encode(x[c], bits=BITS, contributors=n) for c in staying], axis=0, dtype=np.uint64)
    if not np.array_equal(total, fixed.decode(clear, bits=BITS)):
        raise ValueError("another sum than in the clear")
    first = staying[0]
    bytes_ = sum(map(len, keys[first])) * (1 + n) + sum(map(len, shares[first].values())) + sum(map(len, routed[first].values()))
    bytes_ += masked[first].nbytes + sum(map(len, (*opened[first].seeds.values(), *opened[first].keys.values())))
    return [f"{n}", f"{numbers:,}", f"{leaving:.0%}", f"{client.seconds / n:.3f}", f"{server.seconds:.3f}", f"{bytes_ / 1e3:,.0f}",
            f"{bytes_ / (4 * numbers):.2f}"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--numbers", type=int, nargs="+", default=[37_000, 295_000])
    parser.add_argument("--leaving", type=float, nargs="+", default=[0.0, 0.1])
    arguments = parser.parse_args()
    head = ["clients", "numbers", "leaving", "s a client", "s the server", "kB a client", "of plain float32"]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for n in arguments.clients:
        for numbers in arguments.numbers:
            for leaving in arguments.leaving:
                print("| " + " | ".join(measure(n, numbers, leaving)) + " |", flush=True)


if __name__ == "__main__":
    main()
