"""`tracker=tensorboard`: event files in the run's directory, `tensorboard/`."""

from collections.abc import Mapping, Sequence
from typing import Any

from opd.config.schema import RunConfig, TensorBoard
from opd.printable import say
from opd.records.run_dir import RunDir
from opd.watch.tracked import Tracker, numbers


class TensorBoardTracker(Tracker):
    """The metrics as scalars in double precision. A run that goes on writes its file anew, up to where it goes on."""

    def __init__(self, config: RunConfig, folder: RunDir, knobs: TensorBoard):
        import tensorboard  # noqa: F401  whose absence torch reports as one of its own
        from torch.utils.tensorboard.writer import SummaryWriter

        self.folder, self.writer = folder.path / "tensorboard", SummaryWriter
        self.events: SummaryWriter | None = None
        say(f"{folder.path}: tracked by tensorboard; tensorboard --logdir {folder.path.parent} shows it")

    def begin(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for file in self.folder.glob("events.out.tfevents.*"):
            file.unlink()
        # A page that is open meanwhile drops what it has read of the removed files.
        self.events = self.writer(str(self.folder), purge_step=0)
        for line in lines:
            self.log(line)

    def log(self, line: Mapping[str, Any]) -> None:
        assert self.events is not None
        for name, value in numbers(line).items():
            self.events.add_scalar(name, value, line["step"], new_style=True, double_precision=True)
        self.events.flush()

    def finish(self, failed: bool) -> None:
        if self.events is not None:
            self.events.close()
