"""Whether so many processes can share a run, asked before it starts."""

from __future__ import annotations

from collections.abc import Iterable

from gristmill.base.errors import UsageError
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.optim.config import GROUPS


def require(config: TrainConfig, lengths: Iterable[int], processes: int) -> None:
    """Refuses what all processes would run into, be it hours later.

    Args:
        lengths: of the windows of each phase of the mixture, in tokens.

    Raises:
        UsageError: parallel.ep does not divide the processes, passes cannot be shared out, or a kind of optimiser looks
            at whole weights.
    """
    if processes == 1:
        return
    parallel, batch = config.parallel, config.batch
    if processes % parallel.ep:
        raise UsageError(f"parallel.ep ({parallel.ep}) does not divide the number of processes ({processes})")
    for windows in sorted({stage.windows for stage in config.stages}):
        for length in dict.fromkeys(lengths):
            rows, micro = windows * batch.sequence // length, config.rows_of_pass(length)
            if rows % (micro * processes):
                raise UsageError(
                    f"steps of {rows} windows of {length} tokens, in passes of {micro} (batch.micro {batch.micro}), "
                    f"cannot be shared by {processes} processes: windows must be a multiple of {micro * processes}; "
                    "change batch.sequences, batch.ramp_from or batch.micro"
                )
    kinds = {config.optimizer.of(group).kind for group in GROUPS}
    if "adafactor" in kinds and (parallel.data == "shard" or parallel.ep > 1):
        raise UsageError(
            "optimizer.kind adafactor looks at whole weights, and processes have shares of them: give --parallel.data "
            "replicate and --parallel.ep 1, or another kind"
        )
