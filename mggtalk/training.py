"""``mggtalk fit``, ``validate`` and ``test``: LightningCLI over the stages, with experiments that extend each other.

Constructors are the schema: a YAML file names classes and their arguments, the command line overrides single values
(``--model.init_args.optimiser.rate 1e-4``), and what no constructor knows stops the run before anything is loaded. An experiment may name
the file that it extends (``extends: base.yaml``, relative to itself); later values win, and ``${...}`` is resolved at the very end.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from datasets_toolkit.errors import UserError

COMMANDS = ("fit", "validate", "test")


class FitConfig(SaveConfigCallback):
    """Keeps the configuration of training beside the run; measuring a checkpoint leaves it as it is."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save, for training only."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class TrainingCLI(LightningCLI):
    """LightningCLI with our parser settings."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Arguments beside those of trainer, model and data."""
        parser.add_argument("--extends", type=_done, default=None, help="experiment files that this one extends")

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it was given: Lightning would put the checkpoint's settings over it, without a word."""

    def before_instantiate_classes(self) -> None:
        """Miss a checkpoint before anything is built.

        Raises:
            UserError: there is none.
        """
        settings = self.config.get(self.subcommand) if self.subcommand else self.config
        path = settings.get("ckpt_path")
        if path and "://" not in path and path not in ("last", "best", "hpc", "registry") and not Path(path).exists():
            raise UserError(f"{path}: no such file; give the last.ckpt or best.ckpt of a run to --ckpt_path")

    def instantiate_classes(self) -> None:
        """As Lightning's, but what a constructor says of its arguments is not buried under what the parser makes of it.

        Raises:
            UserError: a constructor refuses its arguments.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            causes = list(_causes(error))
            for cause in causes:
                if isinstance(cause, UserError):
                    raise cause from None
            raise UserError(f"settings: {[cause for cause in causes if isinstance(cause, ValueError)][-1]}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _done(files: Any) -> None:
    """What the parser keeps of ``extends``: nothing, for the files have been read, and a config that a run writes is whole."""


def main(arguments: Sequence[str]) -> None:
    """Run ``fit``, ``validate`` or ``test`` with the arguments of a command line.

    Raises:
        UserError: a file cannot be read, or the data, the weights or the settings do not fit together.
        SystemExit: the arguments are no valid configuration; the message is on standard error.
    """
    _hush()
    safe = [] if any(word.startswith("--weights_only") for word in arguments) else ["--weights_only", "true"]
    make_cli([*arguments, *(safe if arguments[:1] and arguments[0] in COMMANDS else [])])  # checkpoints hold no objects


def _hush() -> None:
    """Lightning says everything once, and advertises nothing."""
    if logging.getLogger().handlers:
        logging.getLogger("lightning").handlers.clear()
    lightning = ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "pytorch.trainer.connectors.checkpoint_connector")
    for name in lightning:
        logging.getLogger(f"lightning.{name}").addFilter(_worth_telling)
    for message in (
        "args parameter is intended",
        "LeafSpec",
        "Checkpoint directory .* exists and is not empty",
        "in eval mode at the start",
        "sync_dist",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}")  # networks of losses are frozen; metrics have been synchronised


def _worth_telling(record: logging.LogRecord) -> bool:
    """Neither advertisements, nor a word on how a checkpoint would be loaded when one is saved."""
    return not any(words in record.getMessage() for words in ("Tip:", "`weights_only` was not set"))


def make_cli(arguments: Sequence[str], run: bool = True) -> TrainingCLI:
    """The command line with trainer, model and data built; without ``run`` there is no subcommand among the arguments, and nothing is run.

    Raises:
        UserError: as :func:`main`.
    """
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    return TrainingCLI(
        LightningModule,  # a stage of :mod:`mggtalk.stages`; what is trained need not be a MGGTalk
        LightningDataModule,
        run=run,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=with_bases(arguments),
        parser_kwargs={"parser_mode": "omegaconf+"},
        save_config_callback=FitConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
    )


def with_bases(arguments: Sequence[str]) -> list[str]:
    """The arguments, with each ``--config FILE`` preceded by the files that FILE extends, unless they are there already.

    So ``--config experiments/geometry.yaml --config experiments/debug.yaml``, which extend one file, is one changed by the other.

    Raises:
        UserError: a file cannot be read, or extends itself.
    """
    given, expanded, there = list(arguments), [], set()
    while given:
        word = given.pop(0)
        name, _, value = word.partition("=")
        if name not in ("--config", "-c"):
            expanded.append(word)
            continue
        value = value or (given.pop(0) if given else "")
        for path in chain(Path(value)):
            if path.resolve() not in there or path == Path(value):
                expanded += ["--config", str(path)]
                there.add(path.resolve())
    return expanded


def chain(path: Path, below: tuple[Path, ...] = ()) -> list[Path]:
    """The files that an experiment extends, first to last, and the experiment itself."""
    if path.resolve() in below:
        raise UserError(f"{path}: extends itself; take it out of `extends`")
    bases = _read(path).get("extends") or []
    bases = [bases] if isinstance(bases, str) else bases
    above = [file for base in bases for file in chain(path.parent / base, (*below, path.resolve()))]
    return [*above, path]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such experiment; those that come with the project are in experiments/") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not a YAML file that can be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not an experiment (a YAML file with model, data and trainer)")
    return content


if __name__ == "__main__":
    main(sys.argv[1:])
