"""Says what a run does after each of its steps."""

import dataclasses

from flaxseg.settings import check_rules, count_from


@dataclasses.dataclass(frozen=True)
class Timetable:
    """Decides when a run reports, evaluates and saves.

    Attributes:
      steps: of the whole run.
      report_every: steps between two reports.
      evaluate_every: steps between two evaluations; 0: only the last step is evaluated.
      save_every: steps between two checkpoints; 0: only with an evaluation.

    Raises:
      SettingsError: for values out of range.
    """

    steps: int
    report_every: int
    evaluate_every: int
    save_every: int

    def __post_init__(self):
        rules = {
            "report_every": count_from(1),
            "evaluate_every": count_from(0),
            "save_every": count_from(0),
        }
        check_rules(vars(self), rules)

    def reports(self, step: int) -> bool:
        """Returns whether `step`, counted from 1, is followed by a report."""
        return step == self.steps or _is_due(step, self.report_every)

    def evaluates(self, step: int) -> bool:
        """Returns whether `step` is followed by an evaluation."""
        return step == self.steps or _is_due(step, self.evaluate_every)

    def saves(self, step: int) -> bool:
        """Returns whether `step` is followed by a checkpoint."""
        return self.evaluates(step) or _is_due(step, self.save_every)


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
