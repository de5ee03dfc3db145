"""Secure aggregation: the server learns the sum of what clients send, and no single contribution.

Source: Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017, figure 4, in the variant
against a curious server that follows the protocol. Every pair of clients agrees on a mask that one adds and the other subtracts;
every client adds a mask of its own besides, so that a late upload of somebody who was taken for gone stays hidden. The secrets
behind the masks are shared (Shamir), so that those of clients that leave in mid-round can be taken out.

Four phases; a client may leave before any of them, and all work on who is left:

    keys     every client sends two public keys
    shares   to every other client, encrypted: a share of its masks' secrets
    masked   x + own mask + masks of all pairs, modulo 2^64
    unmask   of those whose upload arrived the shares of the own mask's seed, of those who left the shares of the pair masks' key

Keys are X25519, masks the key stream of ChaCha20 under a key derived by HKDF-SHA256 for this session and pair, shares travel under
ChaCha20-Poly1305. Where we differ: sums are modulo 2^64, so that fixed-point numbers add exactly; the threshold is more than two
thirds of the clients, not what the server wants; seeds are committed to by their hash, so that a wrong share is found out.

What it does not give: keys are not signed, so whoever can replace messages between clients and server (the transport must not let
anybody) can read; and there is no round in which clients compare what they were told, so nothing is promised against a server that
tells them different things about who is there. With a majority as the threshold such a server can read one client's vector; with
two thirds that takes more shares than clients give.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedquilt.errors import FedquiltError, QuorumError
from fedquilt.privacy import shamir
from fedquilt.privacy.fixed import Words
from fedquilt.privacy.sums import least

T = TypeVar("T")
NONCE = 12


class SecureAggregationError(FedquiltError):
    """A message that does not follow the protocol; whoever finds it reveals nothing more."""


class Keys(NamedTuple):
    """Public keys of a client, and the hash of its own mask's seed; 32 bytes each."""

    masks: bytes
    shares: bytes
    seed: bytes


@dataclass(frozen=True)
class Opened:
    """Shares that a client reveals: of the own masks' seeds of those who sent, of the pair masks' keys of those who left."""

    seeds: Mapping[int, bytes]
    keys: Mapping[int, bytes]


def digest(seed: bytes) -> bytes:
    """What a client commits to its seed by."""
    return hashlib.sha256(b"fedquilt seed " + seed).digest()


def stream(key: bytes, size: int) -> Words:
    """``size`` numbers modulo 2^64 from a key that is used once."""
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * size)), dtype="<u8").astype(np.uint64)


def agree(own: X25519PrivateKey, other: bytes, session: bytes, purpose: str, pair: tuple[int, int]) -> bytes:
    """A key of 32 bytes that ``pair[0]``, whose ``own`` is, and ``pair[1]`` share, for one session and purpose.

    Raises:
        SecureAggregationError: the other one's public key is none.
    """
    low, high = sorted(pair)
    info = f"fedquilt {purpose} {low} {high} ".encode() + session
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:  # of another size, or of small order
        raise SecureAggregationError(f"client {pair[1]}'s public key is none", where="secure aggregation") from error
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(shared)


def pair_mask(own: X25519PrivateKey, other: bytes, session: bytes, me: int, them: int, size: int) -> Words:
    """What ``me`` adds for the pair: the other one adds its negative."""
    mask = stream(agree(own, other, session, "mask", (me, them)), size)
    return mask if me < them else np.negative(mask)


def sound(keys: Mapping[int, Keys]) -> dict[int, Keys]:
    """Those that everybody can use: agreement works with them, and nobody else has them. Others would cost all clients the sum."""
    often = Counter(key for one in keys.values() for key in one)
    probe = X25519PrivateKey.generate()

    def usable(one: Keys) -> bool:
        try:
            for key in (one.masks, one.shares):
                probe.exchange(X25519PublicKey.from_public_bytes(key))
        except ValueError:
            return False
        return all(often[key] == 1 for key in one)

    return {client: one for client, one in keys.items() if usable(one)}


def _place(number: int) -> int:
    """Of a client's shares on the polynomial: positive, for the secret is at 0."""
    return number + 1


class Client:
    """One client's half. ``number``: different for all; ``session``: names the sum, the same for all."""

    def __init__(self, number: int, session: bytes, threshold: int) -> None:
        self.number, self.session, self.threshold = number, session, threshold
        self._masks, self._shares = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = secrets.token_bytes(32)
        self._keys: dict[int, Keys] = {}
        self._held: dict[int, bytes] = {}
        self._phase = 1

    def keys(self) -> Keys:
        """Phase 1."""
        return Keys(self._masks.public_key().public_bytes_raw(), self._shares.public_key().public_bytes_raw(), digest(self._seed))

    def shares(self, keys: Mapping[int, Keys]) -> dict[int, bytes]:
        """Phase 2: encrypted shares for every other client, from the keys of all.

        Raises:
            QuorumError: fewer clients than the threshold.
            SecureAggregationError: asked twice, a threshold that is too small, or keys that are missing, repeated or not mine.
        """
        self._next(2)
        self._enough(keys, "sent keys")
        if self.threshold < least(len(keys)):
            what = f"a threshold of {self.threshold} for {len(keys)} clients is too small"
            raise SecureAggregationError(what, where=f"client {self.number}", fix=f"at least {least(len(keys))}")
        every = [key for both in keys.values() for key in both]
        if keys.get(self.number) != self.keys() or len(set(every)) != len(every):
            raise SecureAggregationError("keys are missing, repeated or not mine", where=f"client {self.number}")
        self._keys = dict(keys)
        holders = sorted(keys)
        places = [_place(holder) for holder in holders]
        seed = shamir.split(self._seed, places, self.threshold)
        key = shamir.split(self._masks.private_bytes_raw(), places, self.threshold)
        both = {holder: seed[place] + key[place] for holder, place in zip(holders, places, strict=True)}
        self._held[self.number] = both.pop(self.number)
        sealed = {to: self._seal(to, shares) for to, shares in both.items()}
        self._phase = 2
        return sealed

    def masked(self, x: Words, received: Mapping[int, bytes]) -> Words:
        """Phase 3: ``x [d]`` behind the masks; ``received``: the encrypted shares of all other clients that sent some.

        Raises:
            ValueError: ``x`` is no vector of unsigned 64-bit integers.
            QuorumError: fewer clients than the threshold.
            SecureAggregationError: shares of a stranger, or that were not made for this client, pair and session; asked twice: two
                vectors behind one mask would tell their difference.
        """
        if x.dtype != np.uint64 or x.ndim != 1:  # rows of a matrix would share a mask
            raise ValueError(f"x is {x.dtype} of {x.ndim} dimensions, want a vector of uint64")
        self._next(3)
        self._enough([*received, self.number], "shared secrets")
        self._held |= {sender: self._open(sender, sealed) for sender, sealed in received.items()}
        total = x + stream(self._seed, len(x))
        for other in sorted(received):
            total += pair_mask(self._masks, self._keys[other].masks, self.session, self.number, other, len(x))
        self._phase = 3
        return total

    def unmask(self, sent: Iterable[int]) -> Opened:
        """Phase 4, once: what takes out the masks of those whose upload arrived, and of those who left after phase 2.

        Raises:
            QuorumError: fewer uploads than the threshold.
            SecureAggregationError: asked again, without one's own upload, or for clients that shared nothing.
        """
        self._next(4)
        arrived = set(sent)
        self._enough(arrived, "sent their upload")
        if self.number not in arrived or arrived - set(self._held):
            what = "asked to open masks of clients that are none of this round, or without my own"
            raise SecureAggregationError(what, where=f"client {self.number}")
        self._phase = 4
        gone = set(self._held) - arrived
        size = shamir.SIZE
        return Opened({c: self._held[c][:size] for c in sorted(arrived)}, {c: self._held[c][size:] for c in sorted(gone)})

    def _next(self, phase: int) -> None:
        if phase != self._phase + 1:
            what = f"phase {phase} was asked for after phase {self._phase}: every phase is answered once, in order"
            raise SecureAggregationError(what, where=f"client {self.number}")

    def _enough(self, clients: Iterable[int], what: str) -> None:
        count = len(set(clients))
        if count < self.threshold:
            fix = "more clients, or a smaller threshold"
            raise QuorumError(f"{count} clients {what}, {self.threshold} are needed", where="secure aggregation", fix=fix)

    def _cipher(self, other: int) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(agree(self._shares, self._keys[other].shares, self.session, "shares", (self.number, other)))

    def _seal(self, to: int, content: bytes) -> bytes:
        nonce = secrets.token_bytes(NONCE)
        return nonce + self._cipher(to).encrypt(nonce, content, f"{self.number} to {to}".encode())

    def _open(self, sender: int, sealed: bytes) -> bytes:
        if sender == self.number or sender not in self._keys:
            raise SecureAggregationError(f"shares of client {sender}, who sent no keys", where=f"client {self.number}")
        try:
            content = self._cipher(sender).decrypt(sealed[:NONCE], sealed[NONCE:], f"{sender} to {self.number}".encode())
        except (InvalidTag, ValueError) as error:
            raise SecureAggregationError(
                f"shares of client {sender} are damaged or not for me", where=f"client {self.number}"
            ) from error
        if len(content) != 2 * shamir.SIZE:
            raise SecureAggregationError(f"shares of client {sender} have a wrong size", where=f"client {self.number}")
        return content


class Server:
    """The server's half: passes messages on, and takes the masks out of the sum."""

    def __init__(self, session: bytes, threshold: int) -> None:
        self.session, self.threshold = session, threshold
        self.keys: dict[int, Keys] = {}
        self.sharing: set[int] = set()

    def collect_keys(self, keys: Mapping[int, Keys]) -> Mapping[int, Keys]:
        """Phase 1: what everybody who sent keys is sent."""
        self.keys = dict(self.enough(keys, "sent keys"))
        return self.keys

    def route(self, shares: Mapping[int, Mapping[int, bytes]]) -> dict[int, dict[int, bytes]]:
        """Phase 2: sender -> (receiver -> shares) to receiver -> (sender -> shares), among those who sent shares for all others."""
        whole = {sender: sent for sender, sent in shares.items() if set(sent) == set(self.keys) - {sender}}
        self.sharing = set(self.enough(whole, "shared secrets"))
        return {to: {sender: shares[sender][to] for sender in sorted(self.sharing) if sender != to} for to in sorted(self.sharing)}

    def total(self, masked: Mapping[int, Words], opened: Mapping[int, Opened]) -> Words:
        """The exact sum ``[d]`` modulo 2^64 of what those sent whose upload arrived.

        Raises:
            QuorumError: fewer uploads, or fewer clients that opened masks, than the threshold.
            SecureAggregationError: uploads of strangers or of different sizes; shares that are missing or wrong.
        """
        self.enough(masked, "sent their upload")
        if set(masked) - self.sharing or len({(vector.dtype, vector.shape) for vector in masked.values()}) != 1:
            raise SecureAggregationError("uploads of strangers, or of different sizes", where="secure aggregation")
        holders = sorted(self.enough(opened, "opened masks"))[: self.threshold]
        by, size = shamir.weights([_place(holder) for holder in holders]), len(next(iter(masked.values())))
        result = np.zeros(size, dtype=np.uint64)
        for client in sorted(masked):
            result += masked[client]
            seed = self._secret({h: opened[h].seeds for h in holders}, client, by)
            if digest(seed) != self.keys[client].seed:
                raise SecureAggregationError(f"shares of client {client}'s seed do not give its seed", where="secure aggregation")
            result -= stream(seed, size)
        for gone in sorted(self.sharing - set(masked)):
            key = X25519PrivateKey.from_private_bytes(self._secret({h: opened[h].keys for h in holders}, gone, by))
            if key.public_key().public_bytes_raw() != self.keys[gone].masks:
                raise SecureAggregationError(f"shares of client {gone}'s key do not give its key", where="secure aggregation")
            for client in sorted(masked):  # each of them added the pair's mask, and nobody its negative
                result += pair_mask(key, self.keys[client].masks, self.session, gone, client, size)
        return result

    def _secret(self, held: Mapping[int, Mapping[int, bytes]], of: int, by: Mapping[int, int]) -> bytes:
        try:
            return shamir.join({_place(holder): shares[of] for holder, shares in held.items()}, by)
        except (KeyError, ValueError) as error:
            raise SecureAggregationError(
                f"the shares of client {of}'s secret are incomplete", where="secure aggregation"
            ) from error

    def enough(self, clients: Mapping[int, T], what: str) -> Mapping[int, T]:
        """These clients, if they are as many as the threshold."""
        if len(clients) < self.threshold:
            fix = "more clients, or a smaller threshold"
            raise QuorumError(f"{len(clients)} clients {what}, {self.threshold} are needed", where="secure aggregation", fix=fix)
        return clients
