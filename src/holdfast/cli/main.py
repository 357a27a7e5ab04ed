"""The command ``holdfast``: finds the verb, runs it, turns errors into one line and an exit code.

Exit codes: 0 ok, 1 differs or does not match, 2 corrupt or refused, 3 usage, 4 not found, 5 the machine.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from holdfast.errors import HoldfastError, MissingExtra
from holdfast.state.paths import printable

USAGE = 3
INTERRUPTED = 130
_TORCH = ("torch", "numpy")
"""What the extra of that name brings; the light verbs work without."""
VERBS = {
    "adopt": "a run that resumes, out of a folder of old checkpoints",
    "average": "the average of several checkpoints' weights",
    "check": "whether a file fits a model, changing nothing",
    "convert": "one file as another, proved equal",
    "diff": "what two files, checkpoints or runs do not have in common",
    "doctor": "versions, and what this machine and disk can do",
    "explain": "which checkpoint a run resumes from, and why each is kept",
    "export": "a model for another runtime, compared with itself",
    "extract": "one part of a file as a file of its own",
    "fetch": "a copy of what is in a store, verified and kept on this machine",
    "inspect": "what a file, checkpoint or run holds",
    "lint": "the mistakes in a training script, each with the line to type",
    "ls": "the checkpoints of a run",
    "merge": "several files as one",
    "path": "the folder that a reference names",
    "pin": "a name under which a checkpoint is kept",
    "prove": "whether a training that is killed and resumed ends with the same bits",
    "prune": "delete the checkpoints that no rule keeps",
    "quantize": "a model with its weights in int8 or float8",
    "rename": "a file with other names for its weights",
    "rescue": "the weights out of a whole pickled module",
    "scan": "what a pickle would import and call",
    "show": "the manifest of a checkpoint",
    "stats": "what the values of each tensor are, and which have NaN",
    "strip": "the weights of a checkpoint alone",
    "unpin": "take the name off again",
    "verify": "compare every byte with its digest",
    "view": "a run, a file or a difference as one page for a browser",
}
"""The verbs in the order of the help; each lives in a file of its name, loaded when it is called."""


class Verbs(click.Group):
    """A group whose commands are imported when they are needed, so that no verb pays for another."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"holdfast.cli.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _fail(message: str, code: int) -> int:
    click.echo(f"holdfast: {printable(message)}", err=True)  # names of files that hold escapes are arguments too
    return code


def _needs_torch(arguments: Sequence[str]) -> str:
    verb = next((one for one in arguments if one in VERBS), "this")
    return f'{verb} needs torch, which is not installed: pip install "holdfast[torch]"'


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"holdfast {version('holdfast')}")
        ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]}, epilog="Example: holdfast ls runs/a")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def verbs() -> None:
    """Look at saved models and training runs, and check them. Nothing in a file is ever executed."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a verb and exits with its code.

    Args:
        arguments: what stands after ``holdfast``; those of the process by default.
    """
    try:
        code = verbs.main(arguments, "holdfast", standalone_mode=False)
    except HoldfastError as error:
        code = _fail(str(error), error.exit_code)
    except click.ClickException as error:
        verb = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "holdfast"
        code = _fail(f"{error.format_message()} (see {verb} --help)", USAGE)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _TORCH:
            raise
        code = _fail(_needs_torch(sys.argv[1:] if arguments is None else arguments), MissingExtra.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = _fail("interrupted", INTERRUPTED)
    except SystemExit:  # how click leaves when the reader, such as head, has seen enough
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
