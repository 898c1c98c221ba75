"""A saved index of signatures: new documents are held against a published corpus without reading its text again.

INDEX/index.json         format, how the signatures were made, bands, and size and sha256 of every other file
      signatures.npy     uint32 [entries, permutations]: an entry is a document, in the order of its run
      identities.npy     uint64 [entries, 2]
      ids.arrow          the documents' ids
      exact.keys.npy     uint64, ascending: first halves of the identities
      exact.entries.npy  uint32: whose they are; documents without words are left out
      band-00.keys.npy   uint64, ascending: keys of the first band; with band-00.entries.npy; and so on

All is memory-mapped. datasketch reads the signatures as its own, for whatever its MinHashLSH or MinHashLSHForest do:

    index = SignatureIndex.open(folder)
    lsh = MinHashLSH(num_perm=index.recipe.minhash.permutations, params=(index.bands.bands, index.bands.rows))
    for entry, row in enumerate(index.signatures):
        lsh.insert(entry, MinHash(hashvalues=row, seed=index.recipe.minhash.seed, scheme=index.recipe.scheme))
"""

from __future__ import annotations

import json
import tokenize
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.config import check_range, from_mapping
from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.base.files import canonical_json, read_json, safe_join, sha256_file
from gristmill.datapipe.dedup.minhash import Bands, MinHashConfig, band_keys, has_words
from gristmill.datapipe.text.folded import IDENTITY
from gristmill.datapipe.text.kernel import kernel

FORMAT = "gristmill.index/1"
COMPARED = 64
"""Entries of one bucket that a query is compared with, the earliest. Buckets are far smaller, but for those of copies
and templates, whose members are about equally like the query: comparing it with more would hardly find a better one,
while a million queries against a million copies would never end."""
_SKETCH = b"gristmill.sketch"
SKETCH_COLUMNS = ("identity_high", "identity_low", "signature")


@dataclass(frozen=True)
class Recipe:
    """How signatures were made: those that were made otherwise cannot be compared."""

    minhash: MinHashConfig
    scheme: Literal["affine32"] = "affine32"
    """datasketch's name for our permutations."""
    unicode: str = unicodedata.unidata_version
    """Of the tables that say what a letter is."""
    identity: int = IDENTITY
    """Of text.folded, by which exact copies are found."""

    def refuse(self, other: Recipe, where: object, here: object) -> None:
        """Raises UsageError, which says what differs, unless `other` of `where` equals this of `here`."""
        mine, others = ({**asdict(recipe.minhash), **asdict(recipe), "minhash": None} for recipe in (self, other))
        different = ", ".join(f"{key} {others[key]} instead of {mine[key]}" for key in mine if mine[key] != others[key])
        if different:
            raise UsageError(f"{where}: its signatures cannot be compared with those of {here}: {different}")


def sketch_metadata(config: MinHashConfig) -> dict[str, str]:
    """What the schema of sketches carries, so that an index knows how they were made."""
    return {_SKETCH.decode(): canonical_json(Recipe(config))}


def recipe_of(sketch: pa.Schema, where: object) -> Recipe:
    """How the sketches of `where` were made.

    Raises:
        GristmillError: they do not say.
    """
    written = (sketch.metadata or {}).get(_SKETCH)
    if written is None:
        raise GristmillError(f"{where}: its sketches do not say how they were made; run its pipeline again")
    return from_mapping(Recipe, json.loads(written), str(where))


def signature_of(sketch: pa.Table, recipe: Recipe) -> NDArray[np.uint32]:
    """[documents, permutations] of a table of sketches.

    Raises:
        DataError: they are no such signatures.
    """
    column = sketch["signature"].combine_chunks()
    if column.type != pa.list_(pa.uint32(), recipe.minhash.permutations) or column.null_count:
        raise DataError(f"the column `signature` of a sketch is no {recipe.minhash.permutations} numbers in each row")
    return column.flatten().to_numpy().reshape(-1, recipe.minhash.permutations)


def identity_of(sketch: pa.Table) -> NDArray[np.uint64]:
    """[documents, 2]."""
    return np.stack([sketch[name].to_numpy() for name in SKETCH_COLUMNS[:2]], axis=1)


class SignatureIndex:
    """An index folder, opened."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Use open(). `about` is what index.json holds."""
        self.folder, self.about = folder, about
        self.recipe = from_mapping(Recipe, about["recipe"], str(folder))
        self.bands = from_mapping(Bands, about["bands"], str(folder))
        if self.bands.rows < 1 or not 1 <= self.bands.bands * self.bands.rows <= self.recipe.minhash.permutations:
            raise ValueError(f"{self.bands} in {self.recipe.minhash.permutations} permutations")
        count, searchable = about["entries"], about["searchable"]
        self.signatures = self._array("signatures", np.uint32, (count, self.recipe.minhash.permutations))
        self.identities = self._array("identities", np.uint64, (count, 2))
        self._exact = self._table("exact", searchable)
        self._buckets = [self._table(f"band-{band:02d}", searchable) for band in range(self.bands.bands)]
        with pa.memory_map(str(folder / "ids.arrow")) as file:
            self._ids = pa.ipc.open_file(file).read_all()["id"].chunks
        self._id_starts = np.cumsum([0, *map(len, self._ids)])
        self._sound: set[int] = set()

    @classmethod
    def open(cls, folder: Path, check: bool = False) -> SignatureIndex:
        """Map the files. `check`: hash them all first; without it only what is found to be wrong in use is refused.

        Raises:
            DataError: no index of this version, or a file that is missing, of another size or (see `check`) content.
        """
        about = read_json(folder / "index.json")
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise DataError(f"{folder / 'index.json'}: no index of format {FORMAT}; make it again: datapipe index")
        try:
            for name, file in about["files"].items():
                path = safe_join(folder, name)
                if not path.is_file() or path.stat().st_size != file["bytes"]:
                    raise DataError(f"{path}: missing, or not of {file['bytes']:,} bytes; fetch the index again")
                if check and sha256_file(path) != file["sha256"]:
                    raise DataError(f"{path}: not what index.json vouches for; make or fetch the index again")
            return cls(folder, about)
        except (KeyError, TypeError, AttributeError, ValueError, OSError, EOFError, SyntaxError, tokenize.TokenError,
                pa.ArrowException) as error:  # fmt: skip
            raise DataError(f"{folder}: a broken index ({error!r}); make or fetch it again") from None

    def __len__(self) -> int:
        return len(self.signatures)

    def lookup(
        self, signature: NDArray[np.uint32], identity: NDArray[np.uint64], threshold: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The most alike entry of each document.

        An exact copy is always found. Others are looked for among the entries that share a band (of each bucket the
        first COMPARED), and must agree in `threshold` of the positions; of equally alike ones it is the earliest.
        Documents without words match nothing.

        Args:
            signature: [documents, permutations], made by this index's recipe.
            identity: [documents, 2].
            threshold: least estimated Jaccard similarity, 0 to 1.

        Returns:
            (entry, similarity), both [documents]: -1 and NaN where nothing is alike enough.

        Raises:
            UsageError: the threshold is no share, or the signatures are of another length.
            DataError: the index is broken: it speaks of entries that it has not.
        """
        check_range("threshold", threshold, 0, 1)
        permutations = self.recipe.minhash.permutations
        if signature.shape != (len(identity), permutations) or identity.shape != (len(signature), 2):
            raise UsageError(f"{self.folder}: no signatures of {permutations} positions: {signature.shape}")
        entry, sound = np.full(len(signature), -1, np.int64), True
        queries = np.flatnonzero(has_words(signature))
        # Ascending keys read the mapped tables from their beginning to their end, each page once.
        order = queries[np.argsort(identity[queries, 0], kind="stable")]
        sound &= _copies(*self._exact, self.identities, order, identity, entry)
        copies = entry >= 0
        least = int(np.searchsorted(np.arange(permutations + 1) / permutations, threshold))
        equal = np.full(len(signature), least - 1, np.int32)
        queries = queries[~copies[queries]]
        keys = band_keys(signature, self.bands)
        for band, table in enumerate(self._buckets):
            wanted = np.ascontiguousarray(keys[:, band])
            order = queries[np.argsort(wanted[queries], kind="stable")]
            sound &= _alike(*table, self.signatures, order, wanted, signature, entry, equal)
        if not sound:
            raise DataError(f"{self.folder}: a broken index: its tables name entries that it has not; make it again")
        similarity = np.where(copies, 1.0, np.where(entry >= 0, equal / permutations, np.nan))
        return entry, similarity.astype(np.float32)

    def ids(self, entries: NDArray[np.int64]) -> pa.Array:
        """[len(entries)] the documents' ids, as large_string."""
        chunk = np.searchsorted(self._id_starts, entries, side="right") - 1
        found, places = [pa.array([], pa.large_string())], [np.zeros(0, np.int64)]
        for number in np.unique(chunk):
            if number not in self._sound:  # its offsets may lead anywhere: they come from a file
                try:
                    self._ids[number].validate(full=True)
                except pa.ArrowException as error:
                    raise DataError(f"{self.folder / 'ids.arrow'}: damaged ({error}); fetch the index again") from None
                self._sound.add(int(number))
            here = np.flatnonzero(chunk == number)
            found.append(self._ids[number].take(pa.array(entries[here] - self._id_starts[number])))
            places.append(here)
        return pa.concat_arrays(found).take(pa.array(np.argsort(np.concatenate(places))))

    def _table(self, name: str, rows: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """Keys in ascending order, and the entries that have them; those of equal keys ascend too."""
        return self._array(f"{name}.keys", np.uint64, (rows,)), self._array(f"{name}.entries", np.uint32, (rows,))

    def _array(self, name: str, kind: type, shape: tuple[int, ...]) -> NDArray[Any]:
        array = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if array.dtype != kind or array.shape != shape or not array.flags.c_contiguous:
            raise ValueError(f"{name}.npy is {array.dtype} {array.shape}, not {np.dtype(kind)} {shape}")
        return np.asarray(array)


@kernel
def _copies(keys, entries, identities, order, wanted, found):
    """The earliest entry with each wanted identity, or -1; keys and the identities' second halves ascend together.

    False where an entry is none of the index."""
    for at in order:
        first, last = 0, len(keys)
        while first < last:
            middle = (first + last) // 2
            entry = entries[middle]
            if entry >= len(identities):
                return False
            key, low = keys[middle], identities[entry, 1]
            if key < wanted[at, 0] or (key == wanted[at, 0] and low < wanted[at, 1]):
                first = middle + 1
            else:
                last = middle
        if first < len(keys) and keys[first] == wanted[at, 0]:
            entry = entries[first]
            if entry >= len(identities):
                return False
            if identities[entry, 1] == wanted[at, 1]:
                found[at] = entry
    return True


@kernel
def _alike(keys, entries, signatures, order, wanted, signature, found, equal):
    """Entries with the wanted key that agree with a signature in more positions than the best so far.

    `equal` begins one below the least number of positions that must agree. False where an entry is none of the index.
    """
    permutations = signature.shape[1]
    for at in order:
        if found[at] >= 0 and equal[at] == permutations:
            continue  # the first of its bucket with the very same signature, and so the earliest of all
        first, last = 0, len(keys)
        while first < last:
            middle = (first + last) // 2
            if keys[middle] < wanted[at]:
                first = middle + 1
            else:
                last = middle
        for place in range(first, min(first + COMPARED, len(keys))):
            if keys[place] != wanted[at]:
                break
            entry = entries[place]
            if entry >= len(signatures):
                return False
            agree = np.int32(0)
            for position in range(permutations):
                agree += np.int32(signatures[entry, position] == signature[at, position])
            if agree > equal[at] or (agree == equal[at] and entry < found[at]):
                found[at], equal[at] = entry, agree
    return True
