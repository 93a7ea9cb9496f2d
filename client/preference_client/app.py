"""The command `preference-score`: a file of battles in, a file of predictions out."""

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from preference_client.codec import Ensemble
from preference_client.connection import Tls
from preference_client.in_flight import MAX
from preference_client.journal import Journal
from preference_client.progress import Counts, ScoringProgress, given_up
from preference_client.readers import BattleFile
from preference_client.retries import Patience
from preference_client.rows import Failure
from preference_client.scorer import DEFAULT_URL, Scorer
from preference_client.writers import check_output, errors_path, schema_of
from preference_core.battles.battle import InvalidText
from preference_core.command import STOP_SIGNALS, TRACEBACK_HELP, run_command, stopped_by
from preference_core.errors import PreferenceError, SystemFailure, UserError, escape_control_characters
from preference_core.files.formats import FormatName
from preference_core.files.predictions import ANSWERED_BY

EXIT_SOME_FAILED = 3
EXIT_SIGNAL = 128
STANDARD_ERROR = 2
#: Options that say what is asked, and how.
CONNECTION = ("url", "symmetric", "tls", "root_certificates", "private_key", "certificate_chain", "token")

EXIT_CODES = """Exit codes: 0 every row was scored. 1 the server or the machine failed; the same command goes on from
there. 2 something given is wrong. 3 some rows failed, the others were scored. 129, 130, 143 stopped by SIGHUP, SIGINT,
SIGTERM; the same command goes on from there. After 1, 2 and a stop, an older output is unchanged."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


def main() -> None:
    """Runs the command."""
    run_command(app)


@app.command(epilog=f"{EXIT_CODES}\n\n{TRACEBACK_HELP}")
def score(
    battles: Annotated[str, typer.Argument(help="CSV, TSV, JSON Lines (or one of them gzipped), Parquet; - is stdin.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where predictions go: .csv or .parquet.")],
    url: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PREFERENCE_URL",
            help=f"host:port of the server's gRPC, {DEFAULT_URL} unless given; several times for several servers.",
        ),
    ] = None,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Average over both orders of the responses.")] = False,
    submission: Annotated[
        bool, typer.Option("--submission", help="Kaggle's format: id and labels, and not one row may fail.")
    ] = False,
    weights: Annotated[str | None, typer.Option(help="Instead of the configured ones: gemma=0.4,llama=0.6")] = None,
    invalid_text: Annotated[
        InvalidText, typer.Option(help="Rows with unreadable characters: fail them, or put U+FFFD there.")
    ] = "error",
    id_column: Annotated[
        str | None, typer.Option(help="The column of the ids; by default `id`, or else rows are numbered.")
    ] = None,
    file_format: Annotated[
        FormatName | None, typer.Option("--format", help="By default as the input's suffix says.")
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on where the same run was stopped, if it was; or start from the first row.")
    ] = True,
    max_in_flight: Annotated[
        int,
        typer.Option(help="At most this many requests under way; how many are useful shows in the server's answers."),
    ] = MAX,
    timeout_s: Annotated[float, typer.Option(help="Seconds that one request may take.")] = Patience.timeout_s,
    deadline_s: Annotated[
        float, typer.Option(help="Seconds that one row may take, retries included.")
    ] = Patience.deadline_s,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt; implied by the next four.")] = False,
    root_certificates: Annotated[Path | None, typer.Option(help="PEM file of the authorities to trust.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="PEM file for mutual TLS.")] = None,
    certificate_chain: Annotated[Path | None, typer.Option(help="PEM file for mutual TLS.")] = None,
    token: Annotated[Path | None, typer.Option(help="File that holds a token for the server's front.")] = None,
    traceparent: Annotated[
        str | None, typer.Option(envvar="TRACEPARENT", help="W3C trace context that the server's spans join.")
    ] = None,
    json_summary: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Scores every battle of a file on a served ensemble, in order.

    Rows that cannot be scored are listed in a second file: `predictions.errors.csv` beside `predictions.csv`.
    """
    with _stopped_by_signals(output) as stopping:
        check_output(output, battles)
        with (
            BattleFile(
                battles,
                file_format=file_format,
                id_column=id_column,
                unique_ids=submission,
                invalid_text=invalid_text,
            ) as battle_file,
            _scorer(
                *(url, symmetric, tls, root_certificates, private_key, certificate_chain, token),
                weights=None if weights is None else weights_of(weights),
                timeout_s=timeout_s,
                deadline_s=deadline_s,
                max_in_flight=max_in_flight,
            ) as scorer,
        ):
            if submission and not battle_file.has_ids:
                raise UserError(f"`{battles}` has no column `id`, which a submission needs", hint="Pass `--id-column`.")
            for reason in scorer.away.values():
                sys.stderr.write(f"warning: {escape_control_characters(reason)}; it is passed over until it answers\n")
            ensemble = scorer.ensemble
            run = {
                "--format": file_format,
                "--id-column": id_column,
                "--invalid-text": invalid_text,
                "--submission": submission,
                "--weights": weights,
                **{f"the server's {key}": value for key, value in asdict(ensemble).items()},
            }
            schema = schema_of(ensemble.labels, ensemble.members, submission).with_metadata(
                {ANSWERED_BY: str(ensemble)}
            )
            with Journal(output, json.loads(json.dumps(run)), schema, resume=resume) as journal:
                _score_file(battle_file, scorer, journal, submission, stopping, traceparent)
    _summarise(journal.counts, output, ensemble, json_summary)
    raise typer.Exit(EXIT_SOME_FAILED if journal.counts.failed else 0)


def options_of(arguments: Sequence[str]) -> dict[str, Any]:
    """The command's options by the names of its parameters. Raises click's error for arguments that it would refuse."""
    return typer.main.get_command(app).make_context("preference-score", list(arguments)).params


def ensemble_of(options: Mapping[str, Any]) -> Ensemble:
    """What is served now where the command, with these `options_of` it, would score."""
    with _scorer(*(options[name] for name in CONNECTION)) as scorer:
        return scorer.ensemble


def _scorer(url: list[str] | None, symmetric: bool, tls: bool, *files: Path | None, **more: Any) -> Scorer:
    """A scorer by the options in `CONNECTION`, of which `files` are the last."""
    secure = Tls(*files)
    return Scorer(url or DEFAULT_URL, symmetric=symmetric, tls=secure if tls or secure != Tls() else None, **more)


def weights_of(text: str) -> dict[str, float]:
    """Weights by member from text like `gemma=0.4,llama=0.6`."""
    weights = {}
    for part in text.split(","):
        member, _, weight = part.partition("=")
        try:
            weights[member.strip()] = float(weight)
        except ValueError as error:
            raise UserError(f"`{part}` in `--weights` is not a weight", hint="Write gemma=0.4,llama=0.6.") from error
    return weights


def _score_file(
    battles: BattleFile,
    scorer: Scorer,
    journal: Journal,
    submission: bool,
    stopping: "_Stopping",
    traceparent: str | None,
) -> None:
    console, counts = Console(stderr=True), journal.counts
    if not battles.has_ids:
        console.print(f"`{battles.path}` has no column `id`: the rows are numbered from 1", markup=False)
    rows = iter(battles)
    journal.skip(rows)
    if counts.resumed:
        console.print(f"going on after {counts.resumed:,} rows that were scored before", markup=False)
    if not journal.is_complete:
        stopping.journal = journal
        with ScoringProgress(console, battles) as progress:
            noted, first = journal.noted(rows), counts.rows + 1
            for outcome in scorer.score_many(noted, first, expected=scorer.ensemble, traceparent=traceparent):
                if submission and isinstance(outcome, Failure):
                    raise _incomplete_submission(outcome)
                journal.add(outcome)
                progress.update(counts)
    for number in STOP_SIGNALS:  # Every row is scored: files take their places, whatever signal arrives now.
        signal.signal(number, signal.SIG_IGN)
    journal.finish()


def _incomplete_submission(failure: Failure) -> PreferenceError:
    message = f"Row {failure.row} (id `{failure.id}`) failed, and a submission needs every row: {failure.error.message}"
    if isinstance(failure.error, UserError):
        return UserError(message, "Correct the row; `--invalid-text replace` scores unreadable characters as U+FFFD.")
    return SystemFailure(message, "It is not the row's fault: see the server's log, then run the command again.")


def _summarise(counts: Counts, output: Path, ensemble: Ensemble, json_summary: bool) -> None:
    errors = str(errors_path(output)) if counts.failed else None
    sys.stderr.write(
        f"{output}: {counts.scored:,} rows scored in {counts.seconds:.1f} s ({counts.speed}), "
        f"{counts.truncated:,} of them shortened, {counts.failed:,} failed{f': see {errors}' if errors else ''}\n"
        f"answered by {ensemble}\n"
    )
    if json_summary:
        summary = {
            "output": str(output),
            "errors": errors,
            "ensemble": {name: getattr(ensemble, name) for name in ("name", "model", "version", "content")},
            "scored": counts.scored,
            "failed": counts.failed,
            "truncated": counts.truncated,
            "resumed": counts.resumed,
            "seconds": round(counts.seconds, 3),
            "rows_per_second": round(counts.rows_per_second, 3),
        }
        sys.stdout.write(json.dumps(summary) + "\n")


@dataclass
class _Stopping:
    """What a signal, or an error, finds: the journal, once there is something to save."""

    journal: Journal | None = None

    def resumable(self) -> str:
        """How the run goes on."""
        if self.journal is None:
            return ""
        return f"Resumable: {self.journal.kept:,} rows are kept; the same command goes on after them."


@contextmanager
def _stopped_by_signals(output: Path) -> Iterator[_Stopping]:
    """A signal to stop ends the process, with the signal's exit code; what fails tells how the run goes on.

    It ends there and then: an exception that a handler raises is lost if it happens in a destructor, and in gRPC's
    leaves a lock held forever. The server cancels what the closed connection asked for.
    """
    stopping = _Stopping()
    restored = given_up(Console(stderr=True))

    def leave(number: int) -> NoReturn:
        try:
            message = f"stopped: `{output}` is as it was before. {stopping.resumable()}"
            os.write(STANDARD_ERROR, os.fsencode(f"{restored}{message.strip()}\n"))
        finally:
            os._exit(EXIT_SIGNAL + number)

    def stop(number: int, frame: FrameType | None) -> None:
        if stopping.journal is None:
            leave(number)
        stopping.journal.save_and(lambda: leave(number))

    with stopped_by(stop):
        try:
            yield stopping
        except PreferenceError as error:
            if isinstance(error, SystemFailure) or (stopping.journal is not None and stopping.journal.kept):
                error.hint = " ".join(filter(None, (error.hint, stopping.resumable())))
            raise
