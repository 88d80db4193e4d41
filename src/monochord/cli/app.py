"""The command line: thin commands over the library, nothing heavy imported before it is needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from monochord.cli.output import examples

app = typer.Typer(
    name="monochord",
    help="Read, steer, tune, edit and compare neural networks.",
    epilog=examples("monochord compare", "monochord sites minilm", "monochord compare --help"),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Read, steer, tune, edit and compare neural networks."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error is one line, its exit code 2 for bad input and 1 for anything else."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        app(args=given, prog_name="monochord")
    except SystemExit as end:
        if end.code == 130:  # Ctrl-C
            typer.echo("stopped; the same command goes on where it was", err=True)
        raise
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone
        raise SystemExit(0) from None
    except Exception as error:
        if debug:
            raise
        typer.echo(f"monochord: {_one_line(error)}", err=True)
        raise SystemExit(2 if _is_input(error) else 1) from None


def _is_input(error: Exception) -> bool:
    """Whether the user can do something about an error: bad values, missing files, our own errors."""
    return isinstance(error, ValueError | OSError) or type(error).__module__.startswith("monochord.")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if _is_input(error) else f"{type(error).__name__}: {text} (--debug shows where)"
