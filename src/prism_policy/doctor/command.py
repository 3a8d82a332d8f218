"""`prism doctor`: which demonstrations and run are meant, all checks of them, and what is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from prism_policy.config.presets import demo_config, task_config
from prism_policy.config.settings import Device, RunConfig, single_tasks
from prism_policy.data.source import RobomimicSource, Source, open_source
from prism_policy.demos.dataset import scripted_demos
from prism_policy.doctor.dataset import Examination, examine
from prism_policy.doctor.finding import Finding
from prism_policy.doctor.run import UPDATES, RunExamination, examine_run
from prism_policy.doctor.show import as_json, counted, keep, print_findings, print_json, write_page
from prism_policy.errors import PrismError
from prism_policy.run_folder import read_run
from prism_policy.utils.hub import local_path
from prism_policy.utils.progress import Bar, console
from prism_policy.utils.terminal import shell


@dataclass(frozen=True)
class DoctorOptions:
    """How to check and show."""

    task: str = ""
    """Take the scripted demonstrations of this task."""
    episodes: tuple[str, ...] = ()
    """Of a LeRobot dataset, which ones."""
    minutes: float = 2.0
    """Longest time of the short training; 0 leaves it out."""
    device: Device = "auto"
    json: bool = False
    """Print JSON and nothing else."""
    html: Path | None = None
    """Where to write a page."""


def diagnose(data: str, run: Path | None, options: DoctorOptions) -> bool:
    """Check demonstrations, and a run where there is one; show what was found.

    Args:
        data: path or hf:USER/NAME; a run folder is that run with its demonstrations; "" is those of the task or run.

    Returns:
        Whether there are errors or warnings.

    Raises:
        PrismError: no demonstrations are named or can be read; the run is damaged.
    """
    if run is None and data and (Path(data) / "config.json").is_file():
        data, run = "", Path(data)
    config = read_run(run) if run is not None else None
    sources = open_sources(data, config, options)
    findings, episodes, steps = list[Finding](), 0, 0
    for source in sources:
        one = _examined(source, options.json)
        findings, episodes, steps = [*findings, *one.findings], episodes + one.episodes, steps + one.steps
    measured = list[str]()
    if run is not None and config is not None:
        if data:
            config = replace(config, dataset=str(sources[0].path.absolute()))
        of_run = _examined_run(run, config, sources, options)
        findings, measured = [*findings, *of_run.findings], of_run.measured
    names = ", ".join(str(source.path) for source in sources)
    report = as_json(names, str(run or ""), episodes, steps, findings, measured)
    if options.html:
        write_page(options.html, report, findings)
    page = keep(run, report, findings) if run is not None else None
    if options.json:
        print_json(report)
    else:
        console.print(f"{names}: {episodes} episodes, {steps} steps: {counted(findings)}", style="bold")
        print_findings(findings)
        console.print("", *measured, *[""] * bool(measured))
        if options.html:
            console.print(f"Page: {options.html} (open it in a browser)")
        if page is not None:
            console.print(f"Report: {page}, with what was found")
        console.print(f"Next: {_next(sources[0], run, findings)}")
    return _faulty(findings)


def _examined(source: Source, quiet: bool) -> Examination:
    if quiet:
        return examine(source)
    with Bar("Episodes", len(source.names)) as bar:
        return examine(source, bar.count)


def _examined_run(run: Path, config: RunConfig, sources: list[Source], options: DoctorOptions) -> RunExamination:
    only = sources[0] if len(sources) == 1 else None
    with ExitStack() as stack:
        progress: Callable[[int, int], None] = lambda done, total: None  # noqa: E731 (a default)
        if options.json:
            stack.enter_context(redirect_stdout(sys.stderr))
        elif options.minutes:
            progress = stack.enter_context(Bar("Ten windows", UPDATES)).count
        return examine_run(run, config, only, options.minutes, options.device, progress)


def open_sources(data: str, config: RunConfig | None, options: DoctorOptions) -> list[Source]:
    """The demonstrations that are meant; several of a suite's tasks."""
    if data and options.task:
        raise PrismError(f"expected DATA or --task, got both, {data!r} and {options.task!r}")
    if data:
        return [open_source(local_path(data, "dataset").expanduser(), episodes=options.episodes)]
    if options.task:
        task, demos = task_config(options.task), demo_config(options.task)
    elif config is not None:
        if config.dataset:
            chosen = options.episodes or config.data.episodes
            return [open_source(Path(config.dataset), config.task.action_mode, chosen)]
        task, demos = config.task, config.demos
    else:
        raise PrismError(
            "expected demonstrations: prism doctor DATA (an HDF5 file, a LeRobot folder, hf:USER/NAME or a run "
            "folder), or --task lift for scripted ones"
        )
    # A program reads standard output: what the stages print about themselves goes to the other one.
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        files = scripted_demos(single_tasks(task), demos)
    return [RobomimicSource(file, task.action_mode) for file in files.values()]


def _faulty(findings: list[Finding]) -> bool:
    return any(one.severity != "note" for one in findings)


def _next(source: Source, run: Path | None, findings: list[Finding]) -> str:
    """What to do after reading all this."""
    train = shell("prism", "train", "--dataset", source.path)
    if _faulty(findings):
        return f"{train}   (once the worst of it is repaired)"
    if run is None:
        return train
    return shell("prism", "evaluate" if read_run(run).task.spec.simulated else "serve", run)
