"""The order of training as pure functions of integers: a keyed permutation, a blend exact at every prefix, a scatter.

Only uint64 arithmetic and hashlib: no random generator whose stream could change with a library's version.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import heapq
import math

import numpy as np

from gristmill.base.errors import UsageError

ROUNDS = 6  # of the Feistel network; even, so that the halves end where they began
SMALL = 4096  # below this the argsort of hashes is used: Feistel halves would be under 64 wide
MAX_PERIOD = (
    200_000  # the table of a schedule: W entries, W = the sum of the weights over their greatest common divisor
)
_MASK = 2**64 - 1
_GAMMA = (
    0x9E3779B97F4A7C15  # splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014
)


def hash64(*parts: int | str) -> int:
    """A 64-bit key from integers and strings: (1, 2) and (12,) differ, and seed + epoch never collide as sums would."""
    text = "".join(f"{len(str(part))}:{part}|" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def splitmix64(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser on uint64, element by element, wrapping."""
    x = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclasses.dataclass(frozen=True)
class Permutation:
    """A keyed bijection of [0, size): O(1) memory and any subset of indices at once.

    From 4096 on, a mixed-radix Feistel network with cycle walking (Black & Rogaway, "Ciphers with arbitrary finite
    domains", CT-RSA 2002): x = right * a + left, a * b just over `size`; a round adds a hash of one half to the other.
    """

    size: int
    key: int

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """int64 images of int64 `indices`, all in [0, size)."""
        if self.size < SMALL:
            return self._table[indices]
        x = self._rounds(np.asarray(indices).astype(np.uint64))
        outside = np.flatnonzero(x >= self.size)
        while outside.size:  # cycle walking: at most a few of the a * b - size points lie outside
            x[outside] = self._rounds(x[outside])
            outside = outside[x[outside] >= self.size]
        return x.astype(np.int64)

    @functools.cached_property
    def _table(self) -> np.ndarray:
        counters = np.arange(self.size, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(self.key)
        return np.argsort(splitmix64(counters), kind="stable")

    @functools.cached_property
    def _keys(self) -> np.ndarray:
        return splitmix64(np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(self.key))

    def _rounds(self, x: np.ndarray) -> np.ndarray:
        a = math.isqrt(self.size - 1) + 1
        b = -(-self.size // a)
        this, other = np.uint64(a), np.uint64(b)
        right = x // this
        left = x - right * this
        half = np.uint64(32)
        for key in self._keys:
            hashed = ((splitmix64(right ^ key) >> half) * this) >> half  # multiply-shift into [0, this)
            mixed = left + hashed
            mixed -= np.where(mixed >= this, this, np.uint64(0))
            left, right = right, mixed
            this, other = other, this
        return right * np.uint64(a) + left


@functools.lru_cache(maxsize=512)
def permutation(size: int, key: int) -> Permutation:
    return Permutation(size, key)


def tijdeman(weights: tuple[int, ...]) -> np.ndarray:
    """int32 [sum of weights]: which source has each turn, so that at every prefix n, |count_i - n * w_i / W| < 1.

    Chairman assignment (Tijdeman, Discrete Mathematics 32, 1980; bound 1 - 1/(2k - 2)): turn j of source i may not come
    before the step where its share first leads by 1/(2k - 2), nor after the one where it would lag by 1 - 1/(2k - 2);
    earliest deadline first meets all of them. Integers throughout.

    Raises:
        UsageError: a weight that is not positive, or a sum over MAX_PERIOD.
    """
    k, total = len(weights), sum(weights)
    if k == 0 or min(weights) < 1:
        raise UsageError(f"weights must be positive integers, not {list(weights)}")
    if total > MAX_PERIOD:
        raise UsageError(
            f"weights sum to {total:,} after division by their common divisor; at most {MAX_PERIOD:,}: round them"
        )
    if k == 1:
        return np.zeros(total, np.int32)
    d = 2 * k - 2
    source = np.repeat(np.arange(k), weights)
    turn = np.concatenate([np.arange(w, dtype=np.int64) for w in weights])
    scaled = np.asarray(weights, np.int64)[source] * d
    release = -(-total * (d * turn + 1) // scaled)  # ceiling
    deadline = total * (d * turn + d - 1) // scaled
    by_release = np.argsort(release, kind="stable")
    jobs = zip(release[by_release].tolist(), deadline[by_release].tolist(), source[by_release].tolist())
    waiting: list[tuple[int, int]] = []
    table = np.empty(total, np.int32)
    upcoming = next(jobs, None)
    for step in range(1, total + 1):
        while upcoming is not None and upcoming[0] <= step:
            heapq.heappush(waiting, upcoming[1:])
            upcoming = next(jobs, None)
        table[step - 1] = heapq.heappop(waiting)[1]
    return table


class Schedule:
    """Sources blended by integer weights: (source, ordinal within the source) of any sequence number in O(1)."""

    def __init__(self, weights: tuple[int, ...]) -> None:
        divisor = math.gcd(*weights) or 1
        self.weights = np.array([weight // divisor for weight in weights], np.int64)
        self.period = int(self.weights.sum())
        self.table = tijdeman(tuple(self.weights.tolist()))
        self.places = [np.flatnonzero(self.table == source) for source in range(len(weights))]
        self.rank = np.empty(self.period, np.int64)
        for place in self.places:
            self.rank[place] = np.arange(len(place))

    def __call__(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, ordinal) of each sequence number; the ordinals of a source are 0, 1, 2, ... along the sequence."""
        rounds, place = np.divmod(np.asarray(sequences, np.int64), self.period)
        source = self.table[place]
        return source, rounds * self.weights[source] + self.rank[place]

    def counts(self, sequences: int) -> list[int]:
        """How many of the first `sequences` numbers each source has, in closed form."""
        rounds, place = divmod(sequences, self.period)
        return [
            rounds * int(weight) + int(np.searchsorted(places, place, "left"))
            for weight, places in zip(self.weights, self.places)
        ]


GROUP_SHARDS = 16  # the most that are shuffled as one


def group_bounds(shard_count: int) -> list[tuple[int, int]]:
    """Shard ranges [first, last) that are shuffled as one: each of the first six alone, then 2, 4, 8, 16, 16, ...

    Bounded groups keep reads near one another and let a small budget touch few files; a long run shuffles about 10**9
    tokens at once. Five is the length of the writer's ramp.
    """
    bounds: list[tuple[int, int]] = []
    first = 0
    while first < shard_count:
        size = 1 if len(bounds) < 6 else min(2 ** (len(bounds) - 5), GROUP_SHARDS)
        bounds.append((first, min(first + size, shard_count)))
        first += size
    return bounds


def scatter(seed: int, first: int, count: int) -> np.ndarray:
    """The rows of the global batch that starts at sequence `first`, in keyed order.

    Without it a blend and rank striding line up: with two equal sources and two ranks, each rank would see only one.
    """
    return permutation(count, hash64("scatter", seed, first))(np.arange(count))
