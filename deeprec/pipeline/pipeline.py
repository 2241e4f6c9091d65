"""`Pipeline`: what people call on a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from deeprec.device import Device
from deeprec.pipeline import folder
from deeprec.pipeline.config import PipelineConfig
from deeprec.pipeline.evaluation import Comparison, Report, compare, evaluate
from deeprec.pipeline.fitting import fit
from deeprec.pipeline.stages import Parts, Stages
from deeprec.serve.arguments import require_k
from deeprec.serve.output import require_writable
from deeprec.serve.recommend import asked_users
from deeprec.serve.recommend_file import write_in_parts

if TYPE_CHECKING:
    from typing_extensions import Self


class Pipeline(Stages):
    """Sources, filters, ranking, re-ranking and explanation as one whole that is fitted, measured, saved and asked.

    Attributes:
        config: its stages.
        report: figures by part, as `evaluate` gave them when `fit` measured it: "validation" from before any source
            learned from that part, and "test"; {} where it did not.
    """

    def __init__(self, parts: Parts, report: dict[str, Any] | None = None) -> None:
        super().__init__(parts)
        self.report = report or {}

    @classmethod
    def fit(
        cls,
        config: PipelineConfig | str | Path,
        data: Any = None,
        *,
        device: Device = "auto",
        measure: bool = True,
        on_stage: Callable[[str], None] | None = None,
    ) -> Self:
        """A pipeline for data; see `deeprec.pipeline.fitting.fit`.

        Args:
            config: of all stages, or a YAML file; the paths in a file are relative to it.
            data: Interactions, a frame, a name or a path; None: that of the config.
            device: where models are trained and stay.
            measure: evaluate the validation part, and the test part at the end.
            on_stage: told in words what is done now.
        Raises:
            ValueError: a config that is wrong or does not fit the data.
        """
        base = Path(config).parent if isinstance(config, str | Path) else None
        stages = config if isinstance(config, PipelineConfig) else PipelineConfig.from_yaml(Path(config))
        reports: dict[str, Any] = {}

        def validated(parts: Parts) -> None:
            reports["validation"] = evaluate(Stages(parts), "validation").as_dict()

        parts = fit(stages, data, device=device, base=base, on_stage=on_stage,
                    on_validated=validated if measure else None)  # fmt: skip
        made = cls(parts)
        if measure:
            if on_stage is not None:
                on_stage("measuring the test part")
            made.report = {**reports, "test": made.evaluate().as_dict()}
        return made

    @classmethod
    def load(cls, directory: str | Path, *, device: Device = "auto") -> Self:
        """The pipeline in a folder; see `deeprec.pipeline.folder.load`."""
        return cls(*folder.load(directory, device=device))

    def save(self, directory: str | Path) -> Path:
        """Write the pipeline into a folder, as a whole or not at all; see `deeprec.pipeline.folder.save`."""
        return folder.save(self, self.report, directory)

    def recommend_file(
        self,
        output: str | Path,
        k: int = 10,
        *,
        users: Any = None,
        exclude_seen: bool = True,
        unknown: str = "raise",
        resume: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Write the k best items of all users, or of those named, into a file; see `deeprec.serve.recommend_file`.

        Args:
            output: ends in .parquet, .csv, .tsv or .jsonl; there is either the whole file or what was there before.
            k, exclude_seen, unknown: as of `recommend`.
            users: external ids of those who are served, in this order; None: all that the data knows.
            resume: keep the parts that a killed run of the same pipeline with the same arguments has finished.
            on_progress: called with (users served, users in all) after each part.
        Returns:
            rows written.
        Raises:
            ValueError, WriteError: as `deeprec.serve.recommend_file`.
        """
        path, k = require_writable("recommend_file", output), require_k("recommend_file", k)
        given = self.user_ids.values if users is None else users
        ids, _ = asked_users("recommend_file", given, self.user_ids, unknown)
        plan = {"pipeline": folder.digest_of(self), "k": k, "exclude_seen": exclude_seen, "unknown": unknown}

        def lists_of(asked: pl.Series) -> pl.DataFrame:
            return self.recommend(asked, k, exclude_seen=exclude_seen, unknown=unknown)

        return write_in_parts(path, ids, k, plan, lists_of, resume=resume, on_progress=on_progress)

    def evaluate(self, part: str = "test", *, k: int | None = None) -> Report:
        """The figures of a part, stage by stage; see `deeprec.pipeline.evaluation.evaluate`."""
        return evaluate(self, part, k=k)

    def compare(self, other: Stages, part: str = "test", *, k: int | None = None) -> Comparison:
        """Another pipeline beside this one, on the same people; see `deeprec.pipeline.evaluation.compare`."""
        return compare(self, other, part, k=k)
