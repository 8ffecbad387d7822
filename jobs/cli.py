"""The command line `fieldmill`: its verbs, their options, and what exit codes mean."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Sequence

EXIT_CODES = """\
exit codes: 0 complete; 1 a bug; 2 bad configuration or usage, nothing started; 3 finished, but a
gate failed or nothing is usable, or verify found damage; 4 storage, credentials or cluster: run
again later; 5 incomplete: units were given up; 130 and 143 after signals. 3 to 5 print the command
that continues; the same command again always resumes.
"""

VERBS = {
    "run": ("jobs.run", "ingest, train, fit, evaluate: whatever of it is not done yet"),
    "ingest": ("jobs.run", "only: dataset -> prepared dataset"),
    "train": ("jobs.run", "only: shared parameters"),
    "fit": ("jobs.run", "only: one field for each sample -> store"),
    "evaluate": ("jobs.run", "only: metrics that need meshes"),
    "report": ("jobs.run", "the summary of a finished run again"),
    "plan": ("jobs.show", "what a run would do, with labels and counts; starts nothing"),
    "status": ("jobs.show", "how far a run is, from its store"),
    "verify": ("jobs.stores", "compare a store with its records"),
    "repair": ("jobs.stores", "mark damaged units of a store, to be fitted again"),
    "retry": ("jobs.stores", "fit failed rows again"),
    "export": ("jobs.stores", "write one sample as .ply, .obj, .glb, .png, .wav, .gif, ..."),
    "prior": ("jobs.prior", "a generative model of a store's rows, and samples as a store"),
    "gan": ("jobs.prior", "a latent GAN on a store's rows, and samples as a store"),
    "probe": ("jobs.probe", "which classes can be read off a store's rows, beside raw data"),
    "segment": ("jobs.probe", "classes of points or pixels, from fields and few labeled samples"),
    "methods": ("jobs.show", "list methods"),
    "config": ("jobs.show", "show a run file with every default filled in"),
    "doctor": ("jobs.doctor", "check this machine, the storage and Ray"),
    "submit": ("jobs.submit", "send a run to a cluster (Ray Jobs API)"),
    "demo": ("jobs.demo", "a small run on real data, with a picture"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parse(argv)
    except SystemExit as error:  # argparse has printed why
        return int(error.code or 0)
    command = shlex.join(["fieldmill", *argv])
    try:
        module = importlib.import_module(VERBS[arguments.verb][0])
        return int(getattr(module, f"do_{arguments.verb}")(arguments) or 0)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        from jobs import errors

        return errors.tell(error, command)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of a command line; overrides may stand before, between and after options."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    strange = [word for word in rest if word.startswith("-") or "=" not in word]
    if strange or (rest and not hasattr(arguments, "overrides")):
        top.error(
            f"unknown arguments: {' '.join(strange or rest)}; see fieldmill {arguments.verb} --help"
        )
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    top = argparse.ArgumentParser(
        prog="fieldmill",
        description="Datasets turned into implicit neural representations, in a Zarr store.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=version())
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (_, words) in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=words,
            description=words[0].upper() + words[1:] + ".",
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        ADD[name](verb)
    return top


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return f"fieldmill {installed('fieldmill')}"
    except PackageNotFoundError:
        return "fieldmill (a checkout that is not installed)"


def _run_file(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run_file", metavar="RUN.yaml")
    verb.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        help="e.g. method.steps=500 resources.workers=8",
    )
    verb.add_argument(
        "--limit", type=_positive, metavar="N", help="a pilot: the first N samples, own store"
    )


def _stage(verb: argparse.ArgumentParser) -> None:
    _run_file(verb)
    verb.add_argument(
        "--update", action="store_true", help="list the dataset again and append what is new"
    )
    verb.add_argument(
        "--replace", action="store_true", help="discard rows that a run with other keys left there"
    )


def _store(verb: argparse.ArgumentParser, *, run_file: bool = False) -> None:
    metavar = "RUN.yaml|STORE" if run_file else "STORE"
    verb.add_argument(
        "target",
        metavar=metavar,
        help="URL or path of a store" + (", or a run file" if run_file else ""),
    )
    verb.add_argument("--endpoint", metavar="URL", help="address of an S3-compatible server")
    verb.add_argument("--region")
    verb.add_argument("--profile", help="section of the AWS credentials file")
    verb.add_argument("--anonymous", action="store_true", help="unsigned requests")


def _status(verb: argparse.ArgumentParser) -> None:
    _store(verb, run_file=True)
    verb.add_argument("--json", action="store_true")


def _verify(verb: argparse.ArgumentParser) -> None:
    _store(verb)
    verb.add_argument("--full", action="store_true", help="read all bytes")
    verb.add_argument(
        "--workers",
        type=_positive,
        default=0,
        metavar="N",
        help="with --full: Ray workers; without it none",
    )


def _retry(verb: argparse.ArgumentParser) -> None:
    _run_file(verb)
    verb.add_argument("--failed", action="store_true", help="rows that failed or diverged")
    verb.add_argument(
        "--below-target", action="store_true", help="also rows that missed their target"
    )


def _export(verb: argparse.ArgumentParser) -> None:
    _store(verb)
    verb.add_argument("--sample", required=True, metavar="ID", help="sample id")
    verb.add_argument(
        "--to",
        required=True,
        metavar="FILE",
        help="out.ply, .obj, .glb, .png; .npy of waves; .wav, .flac of sounds; .gif, .webp, "
        ".mp4 of videos (.png: animated); .npz: weights or latents by name",
    )
    verb.add_argument(
        "--resolution", type=_positive, help="cells an axis, or pixels of the longer side"
    )


def _job(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run_file", metavar="RUN.yaml")
    verb.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", default=[], help="e.g. train.steps=500"
    )
    verb.add_argument(
        "--replace", action="store_true", help="discard what a job with other keys left there"
    )


def _methods(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", nargs="?", help="one method: all its keys")
    verb.add_argument("--json", action="store_true")


def _config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("action", choices=["show"])
    _run_file(verb)


def _doctor(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run_file", metavar="RUN.yaml", nargs="?", help="also its storage")
    verb.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[])
    verb.add_argument("--ray", action="store_true", help="also start or join Ray (some seconds)")


def _submit(verb: argparse.ArgumentParser) -> None:
    _stage(verb)
    verb.add_argument(
        "--address", metavar="URL", help="of the Ray dashboard; RAY_API_SERVER_ADDRESS when absent"
    )
    verb.add_argument("--no-wait", action="store_true", help="return once it is submitted")
    verb.add_argument("--follow", action="store_true", help="print its log while it runs")
    verb.add_argument(
        "--shared-filesystem",
        action="store_true",
        help="local paths mean the same on every node: allow them",
    )
    verb.add_argument(
        "--again", action="store_true", help="a new attempt though the last one succeeded"
    )
    verb.add_argument("--python", default="python", help="interpreter on the cluster")


def _demo(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--out", default="demo-output", help="folder to write")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


ADD = {
    **dict.fromkeys(("run", "ingest", "train", "fit", "evaluate"), _stage),
    **dict.fromkeys(("report", "plan"), _run_file),
    "status": _status,
    "verify": _verify,
    "repair": _store,
    "retry": _retry,
    "export": _export,
    **dict.fromkeys(("prior", "gan", "probe", "segment"), _job),
    "methods": _methods,
    "config": _config,
    "doctor": _doctor,
    "submit": _submit,
    "demo": _demo,
}

if __name__ == "__main__":
    sys.exit(main())
