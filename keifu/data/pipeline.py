"""Cleaning a corpus: documents go through steps; what stays is written, what went is counted.

The result depends on the sources and the steps alone: not on how many processes run them, nor on
how often the build was killed and started again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from keifu.core.atomic import write_text
from keifu.core.errors import ConfigError, KeifuError
from keifu.data.bad import Bad
from keifu.data.document import Document, Dropped
from keifu.data.executor import Executor, Here, Outcome, Processes, Ray, Stage
from keifu.data.journal import Journal
from keifu.data.read import Reading, documents
from keifu.data.report import Finished, Report, Samples
from keifu.data.step import CorpusStep, Judge, Step, name_of, written
from keifu.data.steps.perplexity import Perplexity, Score

Where = Literal["here", "ray"]


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How a build runs; nothing here changes which documents stay."""

    processes: int = 1
    """Processes that clean (on Ray: actors)"""
    on: Where = "here"
    """This machine, or the Ray cluster that RAY_ADDRESS names (a small one here if none does)"""
    chunk: int = 256
    """Documents that go to a process together"""
    skip_bad: bool = False
    """Leave out rows that cannot be read, and count them"""
    sample: int = 50
    """Documents that are drawn for people to look at, of those kept and of those dropped"""
    restart: bool = False
    """Begin again where an earlier run was broken off"""

    def __post_init__(self) -> None:
        if self.processes < 1 or self.chunk < 1 or self.sample < 0:
            raise KeifuError("processes and chunk are at least 1, sample at least 0")


Show = Callable[[Report], None]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Steps in their order."""

    steps: Sequence[Step]
    judge: Callable[[], Score] | None = None
    """Opens the language model of the step `perplexity`; a function that processes can be sent."""
    judged_by: str = ""
    """What that model is called: a build that was broken off goes on with the same one alone."""

    def __post_init__(self) -> None:
        if not self.steps:
            raise ConfigError("a pipeline needs steps")

    def clean(self, corpus: Iterable[Document]) -> Iterator[Document | Dropped]:
        """Each document as it leaves the steps, in order: for small corpora and in this process."""
        stages = self.stages()
        with Here(stages) as executor:
            for chunk in _Run(stages, executor).over([[d] for d in corpus], 0):
                yield from (found.dropped or found.document for found in chunk.found)

    def build(
        self,
        sources: Sequence[str | Path],
        folder: str | Path,
        options: BuildOptions = BuildOptions(),
        reading: Reading = Reading(),
        show: Show = lambda report: None,
    ) -> Report:
        """Clean sources into `folder`: documents.jsonl, report.json and samples.

        A run that was broken off goes on where it stopped, if sources and steps are the same.

        Raises:
            ConfigError: the folder was begun with something else.
            KeifuError: a source cannot be read, the folder cannot be written, nothing was there.
        """
        if not sources:
            raise KeifuError("name something to read: a file, a folder, a hub data set")
        folder, bad, report = Path(folder), Bad(skip=options.skip_bad), Report()
        if (folder / "documents.jsonl").exists() and not options.restart:
            raise KeifuError(f"{folder} is built: begin again with --restart, or name another one")
        stages, recipe = self.stages(), self._recipe(sources, options, reading)
        journal = Journal(folder, recipe, restart=options.restart)
        samples = Samples(options.sample)
        try:
            corpus = _chunks(sources, bad, reading, options.chunk)
            with _executor(stages, options) as executor:
                run = _Run(stages, executor)
                resumed = run.again(journal, corpus, report, samples)
                for chunk in run.over(corpus, resumed):
                    facts, text = chunk.facts(samples)
                    journal.add(text, facts, chunk.looks)
                    report.count(facts)
                    show(report)
            report.bad, report.bad_examples = bad.count, bad.examples
            if not report.read:
                raise KeifuError(f"{', '.join(map(str, sources))}: no rows ({bad.count} bad ones)")
        except BaseException:
            journal.close()
            raise
        write_text(folder / "report.json", json.dumps(report.as_json(), indent=1) + "\n")
        write_text(folder / "sample.jsonl", samples.lines())
        journal.finish()
        return report

    def stages(self) -> list[Stage]:
        """The steps, cut after each that changes documents by what came before."""
        stages: list[list[Step]] = [[]]
        for step in self.steps:
            if isinstance(step, Perplexity):
                step = replace(step, judge=step.judge or self.judge)
            stages[-1].append(step)
            if isinstance(step, CorpusStep) and step.edits:
                stages.append([])
        return [stage for stage in stages if stage]

    def _recipe(
        self, sources: Sequence[str | Path], options: BuildOptions, reading: Reading
    ) -> dict[str, Any]:
        return {
            "steps": [written(step) for step in self.steps], "judge": self.judged_by,
            "sources": [_stamp(source) for source in sources],
            "reading": {"split": reading.split, "column": reading.column, "unit": reading.unit},
            "options": {"chunk": options.chunk, "skip_bad": options.skip_bad,
                        "sample": options.sample},
        }  # fmt: skip


class _Run:
    """The stages of one build, with what their corpus steps remember."""

    def __init__(self, stages: Sequence[Stage], executor: Executor) -> None:
        self.stages, self.executor = stages, executor
        self.names = [
            f"{number} {name_of(step)}"
            for number, step in enumerate((s for stage in stages for s in stage), 1)
        ]
        self.corpus = [s for stage in stages for s in stage if isinstance(s, CorpusStep)]
        self.judges: list[Judge] = [step.judge() for step in self.corpus]
        self.number = 0

    def again(
        self,
        journal: Journal,
        corpus: Iterator[Sequence[Document]],
        report: Report,
        samples: Samples,
    ) -> int:
        """Take up what an earlier run finished: the documents are passed over, not cleaned."""
        for chunk, facts in enumerate(journal.done):
            came = next(corpus, [])
            if len(came) != facts["read"]:
                raise KeifuError(f"the sources of {journal.folder} have changed: use --restart")
            for judge, looks in zip(self.judges, journal.looks(chunk), strict=True):
                for number, look in looks:
                    judge(number, look)
            report.count(facts)
            samples.again(facts["drawn"])
        return report.read

    def over(self, corpus: Iterable[Sequence[Document]], first: int) -> Iterator[Finished]:
        """Each chunk after all stages; `first` documents were done before."""
        states: Iterator[_State] = _begun(corpus, first, len(self.corpus))
        base = judged = 0
        for number, stage in enumerate(self.stages):
            states = self._stage(number, base, judged, states)
            base += len(stage)
            judged += sum(isinstance(step, CorpusStep) for step in stage)
        for state in states:
            yield Finished(state.came, state.found, self.names, state.looks)

    def _stage(
        self, number: int, base: int, judged: int, states: Iterator[_State]
    ) -> Iterator[_State]:
        """Chunks through one stage: the executor's part, then what is decided in order."""
        waiting: list[_State] = []

        def alive() -> Iterator[list[Document]]:
            for state in states:
                waiting.append(state)
                yield [o.document for o in state.found if o.dropped is None]

        stage = self.stages[number]
        for outcomes in self.executor.ordered(number, alive()):
            state, left = waiting.pop(0), iter(outcomes)
            for at, before in enumerate(state.found):
                if before.dropped is None:
                    decided = self._decided(stage, judged, state, at, next(left))
                    state.found[at] = decided._replace(step=base + decided.step)
            yield state

    def _decided(
        self, stage: Stage, judged: int, state: _State, at: int, outcome: Outcome
    ) -> Outcome:
        """An outcome with the verdicts of the stage's corpus steps."""
        looks = iter(outcome.looks)
        for place, step in enumerate(stage[: outcome.step]):
            if not isinstance(step, CorpusStep):
                continue
            look, number = next(looks), state.first + at + 1
            verdict = self.judges[judged](number, look)
            state.looks[judged].append((number, look))
            judged += 1
            if isinstance(verdict, Dropped):
                return outcome._replace(step=place, dropped=verdict)
            if verdict is not None:
                edited = step.edit(outcome.document, verdict)
                if isinstance(edited, Dropped):
                    return outcome._replace(step=place, dropped=edited)
                outcome = outcome._replace(document=edited)
        return outcome


@dataclass
class _State:
    """A chunk between two stages."""

    first: int
    came: Sequence[Document]
    found: list[Outcome]
    looks: list[list[tuple[int, bytes]]]


def _begun(corpus: Iterable[Sequence[Document]], first: int, steps: int) -> Iterator[_State]:
    for chunk in corpus:
        found = [Outcome(document, 0, None, ()) for document in chunk]
        yield _State(first, chunk, found, [[] for _ in range(steps)])
        first += len(chunk)


def _chunks(
    sources: Sequence[str | Path], bad: Bad, reading: Reading, size: int
) -> Iterator[list[Document]]:
    """Documents of all sources in order, so many at a time, or fewer where they are long."""
    chunk: list[Document] = []
    characters = 0
    for source in sources:
        for document in documents(source, bad, reading):
            chunk.append(document)
            characters += len(document.text)
            if len(chunk) >= size or characters > 4 << 20:
                yield chunk
                chunk, characters = [], 0
    if chunk:
        yield chunk


def _executor(stages: Sequence[Stage], options: BuildOptions) -> Executor:
    if options.on == "ray":
        return Ray(stages, options.processes)
    return Here(stages) if options.processes == 1 else Processes(stages, options.processes)


def _stamp(source: str | Path) -> list[Any]:
    """A source with its size, where it is a file: another file of that name is noticed."""
    path = Path(source).expanduser()
    if path.is_file():
        return [str(source), path.stat().st_size, path.stat().st_mtime_ns]
    return [str(source)]
