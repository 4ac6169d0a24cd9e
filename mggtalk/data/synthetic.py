"""Training data out of nothing: analytic heads with exact labels, for experiments that only want to see the wheels turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets_toolkit.synthetic.dataset import build_synthetic
from mggtalk.data.datamodule import PairDataModule


class SyntheticPairs(PairDataModule):
    """As :class:`PairDataModule`, on a data set of synthetic heads that is made when it is first needed.

    Args:
        root: folder below which the data set lies, in a folder named by its numbers.
        batch_size: pairs in a global batch, over all processes.
        clips: how many, of the people in turn.
        frames: of each clip.
        size: pixels a side.
        persons: how many people; of three or more one is for validation and one for tests.
        heads: seed of the heads.
        **settings: of :class:`PairDataModule`.
    """

    def __init__(
        self,
        root: str = "outputs/synthetic",
        batch_size: int = 2,
        clips: int = 8,
        frames: int = 12,
        size: int = 64,
        persons: int = 4,
        heads: int = 0,
        **settings: Any,
    ) -> None:
        self.numbers = {"clips": clips, "frames": frames, "size": size, "seed": heads, "persons": persons}
        name = "heads-" + "-".join(f"{key}{value}" for key, value in self.numbers.items())
        super().__init__(str(Path(root) / name), batch_size, **settings)

    def prepare_data(self) -> None:
        """Make the data set, once; on one process of each machine.

        Raises:
            UserError: the folder cannot be written, or a number is not positive.
        """
        if not (Path(self.root) / "dataset.json").exists():
            build_synthetic(self.root, **self.numbers)
