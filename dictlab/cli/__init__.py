"""The command line: it parses arguments, prints, and exits. An analysis' flags are its function's parameters."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError, UnknownOptionError, UnusedCliTokensError

from dictlab.__about__ import VERSION
from dictlab.analysis_entries import COMMANDS, GROUP, SHORT, load_analysis
from dictlab.cli import demo
from dictlab.cli.analyses import command_of, own_examples, own_lines, plain_command
from dictlab.cli.dictionaries import convert, info
from dictlab.cli.failing import say
from dictlab.cli.options import check_analysis_options, check_train_options, unknown_option
from dictlab.cli.printing import as_options, examples, whole_output
from dictlab.cli.training import train_command
from dictlab.errors import DictlabError
from dictlab.runtime.interruption import interrupts
from dictlab.runtime.progress import Phase, worded

HELP = {
    "explore": "Make a page on which latents are found, seen and compared with those of other dictionaries.",
    "latent": "What one latent is: firing rate, strongest contexts, promoted tokens, nearest latents.",
    "export": "Write an explorer's latents as feature files that another page shows: Neuronpedia, circuit-tracer.",
    "stitch": "Add to a small dictionary what larger ones know and it lacks, and measure the result.",
    "verify": "Check a dictionary's file as a careful person would: pass or fail, with figures.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 done, 1 a check failed, 2 a user's mistake, 130 or 143 interrupted by Ctrl-C or SIGTERM, also where what was
    complete until then has been written.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with interrupts() as caught, whole_output(), worded(as_options):
        try:
            with Phase("start"):  # torch and transformers take seconds to import
                application = build(arguments)
            failed = application(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        except (DictlabError, CycloptsError, OSError) as error:  # OSError: no permission, no space left, ...
            say(as_options(_message(error)), error)
            return 2
        except KeyboardInterrupt as error:
            say(f"interrupted{error}.", error)
            return caught.exit_code or 130
    return caught.exit_code or (1 if failed else 0)


def _message(error: Exception) -> str:
    if isinstance(error, UnusedCliTokensError):
        return f"nothing is known to do with {' '.join(error.unused_tokens or [])!r}; --help shows what is expected."
    if isinstance(error, UnknownOptionError):
        known = {name.removeprefix("--").replace("-", "_") for one in error.argument_collection for name in one.names}
        return unknown_option(
            (error.command_chain or ("this",))[-1], error.token.value or error.token.keyword or "", known
        )
    if isinstance(error, UnknownCommandError):
        typed = (error.unused_tokens or [""])[0]
        analyses = [entry.name for entry in entry_points(group=GROUP)]
        near = get_close_matches(typed, analyses, 1, cutoff=0.8)
        if near and len(error.command_chain or ()) == 0:
            return f"Unknown command {typed!r}. Did you mean dictlab report {near[0]}?"
        return f"{error} (--help lists all)"
    return str(error)


def build(arguments: Sequence[str]) -> App:
    """The application. Analyses are imported only where the arguments ask for one: they are slow to import."""
    app = App(
        name="dictlab",
        version=VERSION,
        help="Train, compare and stitch sparse dictionaries of a language model's activations.",
        help_epilogue=examples(
            "dictlab demo",
            "dictlab info checkpoints/local-topk16-512-s0.safetensors",
            "dictlab stitch checkpoints/local-topk16-256-s0.safetensors checkpoints/local-topk16-512-s0.safetensors",
            "dictlab report geometry checkpoints/local-topk16-512-s*.safetensors",
            "dictlab train checkpoints/gpt2-python-2m blocks.3.hook_resid_pre --width 512 1024",
        ),
        help_format="plaintext",
        default_parameter=Parameter(negative=(), consume_multiple=True),
        suppress_keyboard_interrupt=False,  # main says it
    )
    asked = arguments[0] if arguments else ""
    installed = entry_points()  # once: every package's list is read from its file
    known = {entry.name: entry for entry in installed.select(group=GROUP)}
    app.command(demo.demo, name="demo", help_epilogue=examples("dictlab demo", "dictlab demo my/folder"))
    if asked == "train":
        check_train_options(arguments[1:])
    _add_train(app, asked)
    _add_dictionaries(app)
    for name in SHORT:
        _add_short(app, name, known, arguments)
    for entry in installed.select(group=COMMANDS):
        _add_command(app, entry, arguments)
    app.command(_reports(known if asked == "report" else {}, arguments))
    return app


def _add_train(app: App, asked: str) -> None:
    app.command(
        train_command() if asked == "train" else _listed,
        name="train",
        help=None if asked == "train" else "Train a family of dictionaries from one stream of activations.",
        help_epilogue=examples(
            "dictlab train checkpoints/gpt2-python-2m blocks.3.hook_resid_pre --width 512 1024 --k 16 32 --seed 0 1",
            "dictlab train gpt2 blocks.6.hook_resid_pre --activation relu --l1 4 --objective local e2e --text my/texts",
            "dictlab train gpt2 blocks.6.hook_resid_pre --activation batchtopk jumprelu --k 32 --l0 0.001 0.003",
            "dictlab train gpt2 blocks.6.hook_resid_pre --k 32 --finetune e2e --finetune-tokens 100000",
            "dictlab train gpt2 blocks.6.hook_resid_pre --start mine.safetensors --objective weighted --kl 1 --ce 0.1",
            "dictlab train run.toml --seed 3",
            "dictlab train --data activations.npy --width 2048 --k 32",
            "dictlab train --resume runs/first",
        ),
    )


def _add_dictionaries(app: App) -> None:
    app.command(info, name="info", help_epilogue=examples("dictlab info checkpoints/local-topk16-512-s0.safetensors"))
    app.command(
        convert,
        name="convert",
        help_epilogue=examples(
            "dictlab convert my_saelens_folder mine.safetensors",
            "dictlab convert mine.safetensors out/for_sparsify --to sparsify",
            "dictlab convert model.pth mine.safetensors --map W_enc=encoder.weight.T W_dec=decoder.weight.T "
            "b_enc=encoder.bias b_pre=zero b_out=decoder.bias activation=relu",
        ),
    )


def _add_short(app: App, name: str, known: Mapping[str, EntryPoint], arguments: Sequence[str]) -> None:
    """An analysis that is a command of its own."""
    analysis = SHORT[name]
    if name not in arguments[:1]:
        app.command(_listed, name=name, help=HELP[name])
    elif analysis in known:
        check_analysis_options(known[analysis], arguments[1:])
        own = command_of(load_analysis(known[analysis]), arguments)
        app.command(own, name=name, help_epilogue=own_examples(known[analysis]))
    else:
        raise DictlabError("the analyses are not installed; install dictlab with pip, so that they are found.")


def _add_command(app: App, entry: EntryPoint, arguments: Sequence[str]) -> None:
    """A function that is a command and no analysis."""
    if entry.name not in arguments[:1]:
        app.command(_listed, name=entry.name, help=HELP.get(entry.name, ""))
        return
    check_analysis_options(entry, arguments[1:])
    app.command(plain_command(load_analysis(entry)), name=entry.name, help_epilogue=own_examples(entry))


def _reports(known: Mapping[str, EntryPoint], arguments: Sequence[str]) -> App:
    """`dictlab report`, with a command for the analysis that is asked for, or for each."""
    report = App(name="report", help="Run an analysis: tables, plots and a page in a folder.", help_format="plaintext")
    wanted = arguments[1] if len(arguments) > 1 else ""
    if wanted in known:
        check_analysis_options(known[wanted], arguments[2:])
    shown = []
    if wanted and wanted not in known and not wanted.startswith("-"):  # will be refused, with all names
        for name in sorted(known):
            report.command(_listed, name=name, help="")
        return report
    for name, entry in {wanted: known[wanted]}.items() if wanted in known else sorted(known.items()):
        try:
            report.command(command_of(load_analysis(entry), arguments), name=name, help_epilogue=own_examples(entry))
            shown += own_lines(entry)[:1]
        except Exception as error:  # another package's code; it must not take the other analyses with it
            reason = f"cannot be loaded from {entry.value} ({type(error).__name__}: {error})."
            if name == wanted:
                raise DictlabError(f"analysis {name!r} {reason}") from error
            report.command(_listed, name=name, help=f"This analysis {reason}")
    report.help_epilogue = examples(*shown)
    return report


def _listed() -> None:
    """Stands for a command that was not asked for, in a list of commands."""
