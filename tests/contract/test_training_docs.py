"""docs/training.md and scaling.md: their commands exist, with the flags that they give them, and numbers are the
defaults."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from tests.support.scripts import environment

from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.watch.alarms import AlarmConfig

DOCS = Path(__file__).parents[2] / "docs"
PAGE = "\n".join((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("training", "scaling", "places"))
FLAG = re.compile(r"--[a-z][a-z0-9-]*(?:\.[a-z][a-z0-9-]*)*")
PLACEHOLDERS = {"--section.key", "--alarms.name"}


@cache
def help_of(*command: str) -> str:
    import subprocess
    import sys

    code = "from gristmill.trainer import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=False,
        env=environment(COLUMNS="1000", TERM="dumb"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.lower()


def commands() -> list[str]:
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in blocks.splitlines() if line.startswith("trainer ")]


def flags_of(line: str) -> set[str]:
    """All that its command has; trainer compare has two forms."""
    _, command, *rest = shlex.split(line)
    return set(FLAG.findall(help_of(command, *(["--mixtures", "a,b"] if "--mixtures" in rest else []))))


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_page_has_its_flags(line: str) -> None:
    known = flags_of(line)
    given = {word.partition("=")[0] for word in shlex.split(line) if word.startswith("--")}
    assert given <= known | {"--config"}, f"{line}: {sorted(given - known)}"


def test_flags_in_the_text_are_some_command_s() -> None:
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    others = ("trackio ", "tensorboard ", "torchrun ")
    own = [code for code in re.findall(r"`([^`]*)`", text) if not code.startswith(others)]
    told = {flag.lower() for code in own for flag in FLAG.findall(code)}
    known = set[str]().union(*(flags_of(line) for line in commands()))
    unknown = {flag for flag in told - known - PLACEHOLDERS if not any(name.startswith(f"{flag}.") for name in known)}
    assert not unknown


@pytest.mark.parametrize(("said", "is_so"), [
    (r"`window` \((\d+)\)", AlarmConfig().window),
    (r"`spike` \((\d+)\)", AlarmConfig().spike),
    (r"`collapse` \(([\d.]+)\)", AlarmConfig().collapse),
    (r"`collapse_steps` \((\d+)\)", AlarmConfig().collapse_steps),
    (r"`dead` \(([\d.]+)\)", AlarmConfig().dead),
    (r"`dead_steps` \((\d+)\)", AlarmConfig().dead_steps),
    (r"`most` \((\d+)\)", AlarmConfig().most),
    (r"`--checkpoint-every` steps \((\d+)\)", TrainConfig().checkpoint_every),
    (r"`--keep-checkpoints` \((\d+)\)", TrainConfig().keep_checkpoints),
    (r"`--batch.ramp-share` \(([\d.]+)\)", BatchConfig().ramp_share),
])  # fmt: skip
def test_numbers_of_the_page_are_the_defaults(said: str, is_so: float) -> None:
    assert [float(number) for number in re.findall(said, PAGE)] == [is_so]
