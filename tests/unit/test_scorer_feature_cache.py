"""What a backbone made of a window is kept: nothing is extracted twice, a kill loses little, damage is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gristmill.base.errors import DataError
from gristmill.scorer.backbone import cache
from gristmill.scorer.backbone.cache import FeatureCache
from gristmill.scorer.backbone.staged import StagedBackbone, identify
from gristmill.scorer.backbone.states import head_input, pad
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.config import TrainConfig

CONFIG = TrainConfig(taps=(2, 4), dtype="float32", batch_tokens=256)
Open = Callable[..., FeatureCache]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama", layers=4)


@pytest.fixture
def opened(backbone: Path, tmp_path: Path) -> Open:
    def open_cache(config: TrainConfig = CONFIG, folder: Path = tmp_path / "cache") -> FeatureCache:
        identity = identify(backbone)
        return FeatureCache(
            folder, identity, config, lambda tap: StagedBackbone.load(backbone, (tap, tap), config.dtype)
        )

    return open_cache


def windows(count: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [np.append(1, generator.integers(3, 250, generator.integers(1, 40))).astype(np.int32) for _ in range(count)]


def test_states_are_what_a_head_reads_and_pools_their_means(backbone: Path, opened: Open) -> None:
    rows = windows(20)
    features = opened()
    states = features.states(rows, (2, 4))
    pools = features.pools(rows, (1, 2, 4))
    assert pools.shape == (20, 3, 64) and pools.dtype == torch.float32
    model = StagedBackbone.load(backbone, (2, 4), "float32")
    for i, row in enumerate(rows):
        ids_BS, mask_BS = pad([row])
        for tap, hidden in zip((2, 4), model.at((2, 4), ids_BS, mask_BS)):
            x_SD = head_input(hidden, mask_BS)[0][0]
            torch.testing.assert_close(states[tap].rows[i], x_SD, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(states[tap].means_MD[i], x_SD.mean(0), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(pools[i, (1, 2, 4).index(tap)], x_SD.mean(0), rtol=1e-3, atol=2e-3)
    assert states[2].tokens_M.tolist() == [len(row) - 1 for row in rows]


def test_nothing_is_extracted_twice(opened: Open) -> None:
    rows = windows(20)
    first = opened()
    before = first.states(rows, (2, 4))
    assert first.extracted == 20
    again = opened()
    after = again.states([*rows, *rows[:3]], (2, 4))
    assert again.extracted == 0
    for tap in (2, 4):
        for one, other in zip([*before[tap].rows, *before[tap].rows[:3]], after[tap].rows, strict=True):
            assert torch.equal(one, other)
    more = opened()
    more.states([*windows(5, seed=1), *rows, *windows(5, seed=1)], (4,))
    assert more.extracted == 5, "only what is new, and once"
    more.states(rows, (3, 4))
    assert more.extracted == 25, "another tap is another matter"


@pytest.mark.parametrize("other", [{"dtype": "bfloat16"}, {"attention": "eager"}])
def test_another_dtype_or_attention_has_features_of_its_own(opened: Open, other: dict[str, str]) -> None:
    rows = windows(3)
    opened().states(rows, (2,))
    config = TrainConfig(**{**CONFIG.__dict__, **other})
    features = opened(config)
    (states,) = features.states(rows, (2,)).values()
    assert features.extracted == 3
    assert states.rows[0].dtype == (torch.bfloat16 if "dtype" in other else torch.float32)
    assert states.means_MD.dtype == torch.float32


def test_states_are_read_from_the_files_and_not_into_memory(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PART_BYTES", 64 * 1024)
    features = opened()
    rows = windows(200)
    states = features.states(rows, (2,))[2]
    parts = list(features.folder.glob("states-2/part-*.safetensors"))
    assert len(parts) > 5
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert all(part.name in mapped.read_text() for part in parts)
    assert len(states.rows) == 200


def test_a_kill_loses_only_what_was_not_written(backbone: Path, opened: Open, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_scorer_feature_cache import CONFIG, windows
from gristmill.scorer.backbone import cache
from gristmill.scorer.backbone.staged import StagedBackbone, identify
cache.PART_BYTES = 32 * 1024
whole, calls = StagedBackbone.at, []
def at(self, *arguments):
    calls.append(1)
    if len(calls) > 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, *arguments)
StagedBackbone.at = at
backbone = Path({str(backbone)!r})
load = lambda tap: StagedBackbone.load(backbone, (tap, tap), "float32")
cache.FeatureCache(Path({str(tmp_path / "cache")!r}), identify(backbone), CONFIG, load).states(windows(100), (2, 4))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr
    features = opened()
    states = features.states(windows(100), (2, 4))
    assert 20 < features.extracted < 90
    undisturbed = opened(folder=tmp_path / "other").states(windows(100), (2, 4))
    for tap in (2, 4):
        for one, other in zip(states[tap].rows, undisturbed[tap].rows, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def flip(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize("damage", [flip, lambda data: data[: len(data) // 2], lambda data: b""])
def test_a_damaged_file_is_named_and_its_removal_mends_it(opened: Open, damage: Callable[[bytes], bytes]) -> None:
    rows = windows(10)
    features = opened()
    before: Sequence[torch.Tensor] = [row.clone() for row in features.states(rows, (2,))[2].rows]
    (part,) = features.folder.glob("states-2/part-*.safetensors")
    data = part.read_bytes()
    part.unlink()
    part.write_bytes(damage(data))
    with pytest.raises(DataError, match=rf"{part.name}: damaged; delete it"):
        opened().states(rows, (2,))
    part.unlink()
    for one, other in zip(before, opened().states(rows, (2,))[2].rows, strict=True):
        assert torch.equal(one, other)


def test_a_window_with_a_state_that_is_not_finite_is_known_by_its_mean(
    backbone: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = StagedBackbone.at

    def broken(self: StagedBackbone, taps: Sequence[int], ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        return [hidden.masked_fill((ids == 7)[..., None], torch.nan) for hidden in whole(self, taps, ids, mask)]

    monkeypatch.setattr(StagedBackbone, "at", broken)
    rows = [np.array([1, 5, 6], np.int32), np.array([1, 5, 7], np.int32)]
    states = opened().states(rows, (2,))[2]
    assert states.means_MD.isfinite().all(1).tolist() == [True, False]


def test_what_another_library_or_device_made_is_not_taken(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    here = opened().folder
    assert opened(replace(CONFIG, device="cuda:1")).folder == opened(replace(CONFIG, device="cuda:0")).folder != here
    monkeypatch.setattr(cache, "_versions", lambda: ["another torch", "another transformers"])
    assert opened().folder != here
