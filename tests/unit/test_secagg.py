"""Secure aggregation: exact sums whoever leaves when, refusals below the threshold, and uploads that look like noise."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import random
from collections.abc import Iterable, Mapping

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from fedquilt.errors import QuorumError
from fedquilt.privacy import fixed, shamir
from fedquilt.privacy.fixed import Words
from fedquilt.privacy.secagg import (
    Client,
    Opened,
    SecureAggregationError,
    Server,
    agree,
    pair_mask,
    stream,
)
from fedquilt.privacy.sums import least

SESSION = b"run 1, round 2"


def words(n: int, size: int = 5) -> dict[int, Words]:
    stream = np.random.default_rng(n)
    return {client: stream.integers(0, 2**64, size, dtype=np.uint64) for client in range(1, n + 1)}


class Round:
    """All parties in one process. ``gone``: client -> the phase before which it leaves (2, 3, 4; who is not there stays)."""

    def __init__(self, x: Mapping[int, Words], gone: Mapping[int, int], threshold: int | None = None) -> None:
        self.x, self.gone = x, gone
        threshold = least(len(x)) if threshold is None else threshold
        self.clients = {c: Client(c, SESSION, threshold) for c in x}
        self.server = Server(SESSION, threshold)

    def there(self, phase: int) -> list[int]:
        return [c for c in self.clients if self.gone.get(c, 9) > phase]

    def upload(self) -> dict[int, Words]:
        """Phases 1 to 3."""
        keys = self.server.collect_keys({c: client.keys() for c, client in self.clients.items()})
        routed = self.server.route({c: self.clients[c].shares(keys) for c in self.there(2)})
        return {c: self.clients[c].masked(self.x[c], routed[c]) for c in self.there(3)}

    def total(self) -> Words:
        masked = self.upload()
        return self.server.total(masked, {c: self.clients[c].unmask(masked) for c in self.there(4)})


def expected(x: Mapping[int, Words], senders: Iterable[int]) -> Words:
    """In Python's integers."""
    rows = [x[c].tolist() for c in senders]
    return np.array([sum(column) % 2**64 for column in zip(*rows, strict=True)], dtype=np.uint64)


def check(n: int, gone: Mapping[int, int]) -> None:
    """The exact sum of those who sent if a majority opened masks, else a refusal."""
    x, these = words(n), Round(words(n), gone)
    if len(these.there(4)) < least(n):
        with pytest.raises(QuorumError):
            these.total()
    else:
        assert np.array_equal(these.total(), expected(x, these.there(3)))


@pytest.mark.parametrize("phase", [2, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8])
def test_every_set_of_leavers(n: int, phase: int) -> None:
    for size in range(n + 1):
        for gone in itertools.combinations(range(1, n + 1), size):
            check(n, dict.fromkeys(gone, phase))


def test_every_way_to_leave_in_three_phases_at_once() -> None:
    for phases in itertools.product((2, 3, 4, 9), repeat=4):
        check(4, dict(enumerate(phases, 1)))


@pytest.mark.parametrize("n", [9, 20, 100])
def test_random_leavers_of_many(n: int) -> None:
    draw = random.Random(n)
    gone = {c: draw.choice((2, 3, 4)) for c in draw.sample(range(1, n + 1), n - least(n))}
    check(n, gone)


def test_uploads_look_uniform_whatever_is_sent() -> None:
    """Bytes of a masked vector of zeros, and of one that is all ones, and their difference between two clients."""
    x = {c: np.full(20_000, value, dtype=np.uint64) for c, value in ((1, 0), (2, 2**64 - 1), (3, 0))}
    masked = Round(x, {}).upload()
    for vector in (*masked.values(), masked[1] - masked[3]):
        counts = np.bincount(np.frombuffer(vector.tobytes(), dtype=np.uint8), minlength=256)
        assert chisquare(counts).pvalue > 1e-9
    plain = np.bincount(np.frombuffer(x[1].tobytes(), dtype=np.uint8), minlength=256)
    assert chisquare(plain).pvalue == 0, "the test sees what is not masked"


def test_a_late_upload_of_a_client_taken_for_gone_stays_hidden() -> None:
    """The server then knows all its pair masks; its own mask is left."""
    these = Round(words(4, 1000), {})
    late = these.upload()[4]
    key = these.clients[4]._masks
    for other in (1, 2, 3):
        late = late - pair_mask(key, these.server.keys[other].masks, SESSION, 4, other, 1000)
    assert np.array_equal(late - these.x[4], stream(these.clients[4]._seed, 1000))
    opened = these.clients[1].unmask([1, 2, 3])
    assert set(opened.seeds) == {1, 2, 3}
    assert set(opened.keys) == {4}, "never both of one client"


def test_masks_of_two_rounds_and_two_pairs_differ() -> None:
    a, b = X25519PrivateKey.generate(), X25519PrivateKey.generate().public_key().public_bytes_raw()
    every = itertools.product((b"1", b"2"), ("mask", "shares"), ((1, 2), (1, 3)))
    found = {agree(a, b, session, purpose, pair) for session, purpose, pair in every}
    assert len(found) == 8
    assert np.array_equal(pair_mask(a, b, b"1", 1, 2, 4), np.negative(pair_mask(a, b, b"1", 2, 1, 4)))


def test_known_answers() -> None:
    """ChaCha20: RFC 8439, appendix A.1, vector 1. HKDF (RFC 5869): by the standard library."""
    keystream = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    assert stream(bytes(32), 4).astype("<u8").tobytes() == keystream
    own, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    secret = own.exchange(other.public_key())
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    derived = hmac.new(extracted, b"fedquilt mask 1 2 " + SESSION + b"\x01", hashlib.sha256).digest()
    assert agree(own, other.public_key().public_bytes_raw(), SESSION, "mask", (2, 1)) == derived


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_threshold_that_is_too_small_is_refused() -> None:
    assert [least(n) for n in (1, 2, 3, 4, 5, 6, 9, 100)] == [2, 2, 3, 3, 4, 5, 7, 67]
    with pytest.raises(SecureAggregationError, match="at least 4"):
        Round(words(5), {}, threshold=3).upload()


def test_a_client_opens_no_more_keys_than_may_be_missing() -> None:
    these = Round(words(6), {})
    these.upload()
    with pytest.raises(QuorumError):
        these.clients[1].unmask([1, 2, 3, 4])
    assert len(these.clients[1].unmask([1, 2, 3, 4, 5]).keys) == 1 == 6 - least(6)


@pytest.mark.parametrize("n", range(2, 60))
def test_two_thirds_are_too_many_for_a_server_that_tells_clients_different_things(n: int) -> None:
    """To read the vector of a client whom it told of t - 1 others only, it needs t shares of each of their keys; each of the n - 1
    others opens n - t keys at most (the test above). A majority of five would be few enough."""

    def possible(t: int) -> bool:
        return t * (t - 1) <= (n - 1) * (n - t)

    assert not possible(least(n))
    assert n != 5 or possible(3)


def test_too_few_are_refused_in_every_phase() -> None:
    x = words(5)
    for phase, said in ((2, "shared secrets"), (3, "sent their upload"), (4, "opened masks")):
        with pytest.raises(QuorumError, match=f"2 clients {said}, 4 are needed"):
            Round(x, dict.fromkeys((1, 2, 3), phase)).total()


def test_every_phase_is_answered_once_and_in_order() -> None:
    """Two vectors behind one mask would tell their difference, two answers in the last phase both masks of a client."""
    these = Round(words(4), {})
    client, x = these.clients[1], these.x[1]
    with pytest.raises(SecureAggregationError, match="phase 3 was asked for after phase 1"):
        client.masked(x, {})
    masked = these.upload()
    for ask in (lambda: client.shares(these.server.keys), lambda: client.masked(x, {})):
        with pytest.raises(SecureAggregationError, match="answered once"):
            ask()
    for wrong in ([2, 3, 4], [1, 2, 5]):
        with pytest.raises(SecureAggregationError, match="none of this round, or without my own"):
            client.unmask(wrong)
    client.unmask(masked)
    with pytest.raises(SecureAggregationError, match="answered once"):
        client.unmask([1, 2, 3])


def test_shares_are_for_one_pair_and_session() -> None:
    """And after a refusal nothing of it is kept."""
    clients = {c: Client(c, SESSION, 3) for c in (1, 2, 3, 4)}
    keys = {c: client.keys() for c, client in clients.items()}
    sent = {c: client.shares(keys) for c, client in clients.items()}
    x = np.zeros(1, dtype=np.uint64)
    flipped = sent[2][1][:-1] + bytes([sent[2][1][-1] ^ 1])
    good = {3: sent[3][1], 4: sent[4][1]}
    for bad in ({2: sent[2][3]}, {2: sent[3][1]}, {2: flipped}, {2: b""}, {1: sent[2][1]}, {7: sent[2][1]}):
        with pytest.raises(SecureAggregationError, match=r"damaged|no keys"):
            clients[1].masked(x, good | bad)
    clients[1].session = b"another"
    with pytest.raises(SecureAggregationError, match="damaged"):
        clients[1].masked(x, good)
    assert set(clients[1]._held) == {1}
    clients[1].session = SESSION
    clients[1].masked(x, good)
    assert not clients[1].unmask([1, 3, 4]).keys, "client 2 was none of this client's partners"


@pytest.mark.parametrize("x", [np.zeros((2, 2), np.uint64), np.zeros(2, np.int64), np.zeros(2), np.array(3, np.uint64)])
def test_only_vectors_of_words_are_masked(x: Words) -> None:
    """Rows of a matrix would share a mask, and their difference would show."""
    with pytest.raises(ValueError, match="want a vector of uint64"):
        Round({1: x, 2: x}, {}).upload()


def test_who_sent_a_key_that_is_none_is_named() -> None:
    these = Round(words(3), {})
    keys = {c: client.keys() for c, client in these.clients.items()}
    with pytest.raises(SecureAggregationError, match="client 2's public key is none"):
        these.clients[1].shares({**keys, 2: keys[2]._replace(shares=bytes(32))})
    odd = {**keys, 2: keys[2]._replace(masks=bytes(32))}
    sent = {c: client.shares(odd if c == 1 else keys) for c, client in these.clients.items()}
    with pytest.raises(SecureAggregationError, match="client 2's public key is none"):
        these.clients[1].masked(these.x[1], {2: sent[2][1], 3: sent[3][1]})


def test_the_server_leaves_out_who_did_not_share_with_all_and_refuses_odd_uploads() -> None:
    these = Round(words(4), {})
    keys = these.server.collect_keys({c: client.keys() for c, client in these.clients.items()})
    shares = {c: client.shares(keys) for c, client in these.clients.items()}
    del shares[4][1]
    routed = these.server.route(shares)
    assert {to: set(found) for to, found in routed.items()} == {1: {2, 3}, 2: {1, 3}, 3: {1, 2}}
    masked = {c: these.clients[c].masked(these.x[c], routed[c]) for c in (1, 2, 3)}
    opened = {c: these.clients[c].unmask(masked) for c in (1, 2, 3)}
    for odd in ({**masked, 3: masked[3][:-1]}, {**masked, 4: masked[3]}):
        with pytest.raises(SecureAggregationError, match="strangers, or of different sizes"):
            these.server.total(odd, opened)
    assert np.array_equal(these.server.total(masked, opened), expected(these.x, (1, 2, 3)))


def test_keys_that_are_not_mine_or_come_twice_are_refused() -> None:
    mine, other, third = (Client(c, SESSION, 2) for c in (1, 2, 3))
    twice = other.keys()._replace(shares=other.keys().masks)
    swapped, same = {1: other.keys(), 2: mine.keys()}, {1: mine.keys(), 2: mine.keys()}
    for keys in (swapped, same, {2: other.keys(), 3: third.keys()}, {1: mine.keys(), 2: twice}):
        with pytest.raises(SecureAggregationError, match="keys are missing"):
            mine.shares(keys)


@pytest.mark.parametrize(("part", "of"), [("seeds", 1), ("keys", 4)])
@pytest.mark.parametrize("how", ["missing", "another", "one bit"])
def test_a_wrong_share_is_found_out(part: str, of: int, how: str) -> None:
    these = Round(words(4), {4: 3})
    masked = these.upload()
    opened = {c: these.clients[c].unmask(masked) for c in these.there(4)}
    shares = {"seeds": dict(opened[1].seeds), "keys": dict(opened[1].keys)}
    right = shares[part].pop(of)
    if how != "missing":
        shares[part][of] = bytes(shamir.SIZE) if how == "another" else right[:-1] + bytes([right[-1] ^ 1])
    with pytest.raises(SecureAggregationError, match=r"incomplete|do not give"):
        these.server.total(masked, {**opened, 1: Opened(**shares)})


# -- shares and fixed point --------------------------------------------------------------------------------------------


def probably_prime(n: int) -> bool:
    """Miller and Rabin with forty bases."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in random.Random(0).sample(range(2, 10**6), 40):
        x = pow(base, odd, n)
        if x not in (1, n - 1) and all((x := x * x % n) != n - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_field_is_the_smallest_prime_above_the_secrets() -> None:
    assert probably_prime(shamir.PRIME)
    assert not any(probably_prime(n) for n in range(2**256 + 1, shamir.PRIME, 2))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 7), st.data())
def test_any_threshold_many_shares_give_the_secret_back(secret: bytes, n: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(1, n))
    holders = data.draw(st.lists(st.integers(1, 10**6), min_size=n, max_size=n, unique=True))
    shares = shamir.split(secret, holders, t)
    some = data.draw(st.permutations(holders))[:t]
    assert shamir.join(shares, shamir.weights(some)) == secret
    if t > 1:
        with contextlib.suppress(ValueError):
            assert shamir.join(shares, shamir.weights(some[1:])) != secret


@pytest.mark.parametrize(("secret", "holders", "threshold"), [(b"", [1], 1), (bytes(32), [1, 2], 3), (bytes(32), [0, 1], 1),
                                                              (bytes(32), [1, 1], 1), (bytes(32), [1], 0)])  # fmt: skip
def test_shares_that_make_no_sense(secret: bytes, holders: list[int], threshold: int) -> None:
    with pytest.raises(ValueError, match=r"secret|threshold|holders"):
        shamir.split(secret, holders, threshold)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=20))
def test_fixed_point_sums_are_exact_and_within_half_a_step_each(rows: list[list[float]]) -> None:
    bits, n = 32, len(rows)
    encoded = [fixed.encode(np.array(row), bits=bits, contributors=n) for row in rows]
    total = fixed.decode(sum(encoded[1:], encoded[0]), bits=bits)
    exact = [sum(round(x * 2**bits) for x in column) / 2**bits for column in zip(*rows, strict=True)]
    assert total.tolist() == exact
    assert np.allclose(total, np.sum(rows, axis=0), atol=n * 2.0 ** -(bits + 1) + 1e-9)


def test_what_could_leave_the_range_is_refused() -> None:
    largest = np.nextafter(2.0**31 / 4, 0)
    four = fixed.encode(np.array([largest, -largest]), bits=32, contributors=4)
    assert fixed.decode(four + four + four + four, bits=32).tolist() == [4 * largest, -4 * largest]
    with pytest.raises(ValueError, match="may leave 64 bits"):
        fixed.encode(np.array([2.0**31 / 4]), bits=32, contributors=4)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or Inf"):
            fixed.encode(np.array([bad]), bits=32, contributors=1)
