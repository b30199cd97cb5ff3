"""The `almosaic` command: the only module that reads the command line and prints.

Every verb imports what it needs when it runs, so that `almosaic --help` answers at once and without torch.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from almosaic.errors import AlmosaicError

_OVERRIDES = "recipe keys to change, e.g. stages.encoder.optim.steps=10 (list items by their id)"
_MODEL = "a model folder, or a run folder (its last stage is used)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; exit status 0 done, 1 some clips failed, 2 a mistake to mend, 130 stopped by Ctrl-C."""
    arguments = _parse(argv)
    logging.getLogger("almosaic").addHandler(_notes)
    logging.getLogger("almosaic").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # its import warns of a kernel that nobody needs
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except AlmosaicError as error:
        return _fail(str(error), 130 if type(error).__name__ == "Interrupted" else 2)
    except KeyboardInterrupt:
        say(f"\nstopped; {arguments.kept}", sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if "No space left on device" in str(error):
            return _fail(f"no space left on the disk ({error}); free some, then: {arguments.kept}")
        if type(error).__name__ == "OutOfMemoryError":
            return _fail(
                f"not enough device memory: lower batch_size and raise accumulation; {arguments.kept}"
            )
        if isinstance(error, OSError):
            return _fail(str(error))
        raise


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments in any order: argparse alone would refuse key=value after an option."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if hasattr(arguments, "overrides"):
        arguments.overrides += [text for text in rest if not text.startswith("-")]
        rest = [text for text in rest if text.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = argparse.ArgumentParser(prog="almosaic", description="Train, ask and judge models that listen.")
    parser.add_argument("--version", action="version", version=_version())
    parser.set_defaults(kept="nothing was left half written")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_recipe_verbs(verbs)
    _add_model_verbs(verbs)
    check = verbs.add_parser("check", help="decode every clip of a manifest, a folder or tar archives")
    check.add_argument(
        "data", metavar="DATA", nargs="+", help="a manifest, a folder of audio, a .tar archive or a pattern"
    )
    check.set_defaults(run=_check)
    return parser


def _add_recipe_verbs(verbs: Any) -> None:
    train = verbs.add_parser("train", help="run the stages of a recipe")
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file or a name from `almosaic recipe list`")
    train.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES)
    train.add_argument(
        "--resume", action="store_true", help="go on where an earlier run of this recipe stopped"
    )
    train.add_argument(
        "--stage", metavar="ID", help="run only this stage; the ones it builds on must be finished"
    )
    train.set_defaults(run=_train)

    evaluate = verbs.add_parser(
        "eval", help="probe, caption and question a model; deaf controls beside every score"
    )
    evaluate.add_argument("target", metavar="RECIPE-or-MODEL", help=f"a recipe with eval stages, or {_MODEL}")
    evaluate.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES)
    evaluate.set_defaults(run=_eval)

    recipe = verbs.add_parser("recipe", help="list recipes, or show one with everything filled in")
    actions = recipe.add_subparsers(metavar="list|show", required=True)
    actions.add_parser("list", help="names and what they are for").set_defaults(run=_recipe_list)
    show = actions.add_parser("show", help="the resolved recipe as YAML")
    show.add_argument("recipe", metavar="RECIPE")
    show.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES)
    show.set_defaults(run=_recipe_show)


def _add_model_verbs(verbs: Any) -> None:
    embed = verbs.add_parser("embed", help="frozen features of audio files")
    embed.add_argument("model", metavar="MODEL", help=_MODEL)
    embed.add_argument("audio", metavar="AUDIO", nargs="+", help="audio files, or folders of them")
    embed.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help=".safetensors, .npz or .jsonl"
    )
    embed.add_argument(
        "--layer", type=int, help="0-based encoder block (default: the encoder's pooled output)"
    )
    embed.add_argument(
        "--pooling",
        choices=("mean", "mean_valid", "cls"),
        help="over tokens: all, those of real frames, or the first (default: as the encoder's config says)",
    )
    embed.add_argument("--batch-size", type=int, default=8)
    embed.set_defaults(run=_embed)

    generate = verbs.add_parser("generate", help="captions and answers about audio files")
    generate.add_argument("model", metavar="MODEL", help=_MODEL)
    generate.add_argument("audio", metavar="AUDIO", nargs="+", help="audio files, or folders of them")
    generate.add_argument("--prompt", metavar="TEXT", required=True, help="what to ask about each clip")
    generate.add_argument(
        "-o", "--output", metavar="OUT.jsonl", type=Path, help="continues the file if it exists"
    )
    generate.add_argument("--batch-size", type=int, default=8)
    generate.add_argument("--max-new-tokens", type=int, default=64)
    generate.add_argument("--temperature", type=float, default=0.0, help="0 = always the likeliest word")
    generate.set_defaults(run=_generate)

    _add_export(verbs)
    demo = verbs.add_parser("demo", help="a chat page in the browser, on this machine only")
    demo.add_argument("model", metavar="MODEL", help=_MODEL)
    demo.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 opens it to your network (default: 127.0.0.1)"
    )
    demo.add_argument("--port", type=int, default=7860)
    demo.add_argument("--share", action="store_true", help="also publish a public link through gradio.live")
    demo.set_defaults(run=_demo)


def _add_export(verbs: Any) -> None:
    export = verbs.add_parser("export", help="write a complete Hugging Face checkpoint")
    export.add_argument(
        "paths", metavar="RUN OUT", nargs="+", type=Path, help="only OUT with --from-released, --to-released"
    )
    export.add_argument("--merge", action="store_true", help="fold LoRA into the language model")
    released = export.add_mutually_exclusive_group()
    released.add_argument(
        "--from-released", metavar="FILE", type=Path, help="convert published AudioMosaic weights to a folder"
    )
    released.add_argument(
        "--to-released", metavar="MODEL", type=Path, help="write an encoder or classifier in that format"
    )
    published = export.add_argument_group("with --from-released")
    published.add_argument(
        "--preset",
        help="data set of the release: audioset (default), esc50, speech_commands, envsdd, ltu",
    )
    published.add_argument(
        "--labels", metavar="FILE", type=Path, help="CSV index,mid,display_name or label, or one class a line"
    )
    published.add_argument(
        "--std-factor",
        type=float,
        choices=(1.0, 2.0),
        help="2 divides by 2 std, as in training; 1 as in the preprocessing beside the released weights",
    )
    published.add_argument("--heads", type=int, metavar="N", help="attention heads (default: of 64 channels)")
    published.add_argument("--probe-layer", type=int, metavar="N", help="0-based block that a probe reads")
    export.set_defaults(run=_export)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line, on the first process of a distributed run only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=stream, flush=True)


def _fail(message: str, status: int = 2) -> int:
    rank = os.environ.get("RANK", "0")
    prefix = ("error: " if status == 2 else "") + (f"process {rank}: " if rank != "0" else "")
    print(prefix + " ".join(message.split()), file=sys.stderr, flush=True)
    return status


class _Notes(logging.Handler):
    """What the package notes while it works, such as a skipped clip, as lines above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if os.environ.get("RANK", "0") == "0":
            tqdm.write(record.getMessage(), file=sys.stderr)


_notes = _Notes()


def _version() -> str:
    from almosaic import __version__

    return f"almosaic {__version__}"


def _train(arguments: argparse.Namespace) -> int:
    from almosaic import run
    from almosaic.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    arguments.kept = (
        f"finished stages and checkpoints are in {recipe.output}; go on with the same command and --resume"
    )
    run.train(recipe, resume=arguments.resume, only=arguments.stage, report=say)
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from almosaic import run

    run.evaluate(arguments.target, arguments.overrides, report=say)
    return 0


def _recipe_list(arguments: argparse.Namespace) -> int:
    from almosaic.recipe import list_recipes

    recipes = list_recipes()
    width = max((len(name) for name in recipes), default=0)
    for name, description in recipes.items():
        say(f"{name:<{width}}  {description}")
    return 0


def _recipe_show(arguments: argparse.Namespace) -> int:
    from almosaic.recipe import load_recipe, resolve, to_yaml

    say(to_yaml(resolve(load_recipe(arguments.recipe, arguments.overrides))).rstrip())
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from almosaic.data.check import check_data

    status = 0
    for target in arguments.data:
        with _progress(None, "clips") as advance:
            items, complaints = check_data(target, advance)
        for complaint in complaints:
            say(complaint)
        say(f"{target}: {f'{len(complaints)} of {items} are bad' if complaints else f'all {items} are good'}")
        status = 2 if complaints else status
    return status


def _embed(arguments: argparse.Namespace) -> int:
    from almosaic import outputs

    sources = outputs.audio_files(arguments.audio)
    with _progress(len(sources), "clips") as advance:
        failed = outputs.embed_files(
            arguments.model,
            sources,
            arguments.output,
            layer=arguments.layer,
            pooling=arguments.pooling,
            batch_size=arguments.batch_size,
            progress=advance,
        )
    return _list_failed(failed, len(sources))


def _generate(arguments: argparse.Namespace) -> int:
    from almosaic import outputs

    sources = outputs.audio_files(arguments.audio)
    if arguments.output is not None:
        arguments.kept = (
            f"every finished answer is in {arguments.output}; the same command goes on from there"
        )
    with _progress(len(sources), "clips") as advance:
        failed = outputs.generate_files(
            arguments.model,
            sources,
            arguments.prompt,
            arguments.output,
            batch_size=arguments.batch_size,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            report=say,
            progress=advance,
        )
    return _list_failed(failed, len(sources))


def _list_failed(failed: Sequence[str], total: int) -> int:
    for line in failed:
        say(f"failed: {line}", sys.stderr)
    if failed:
        say(f"{len(failed)} of {total} clips failed", sys.stderr)
    return 1 if failed else 0


def _export(arguments: argparse.Namespace) -> int:
    from almosaic import released
    from almosaic.export import export
    from almosaic.training.callbacks import quiet_library

    wanted = 1 if arguments.from_released or arguments.to_released else 2
    if len(arguments.paths) != wanted:
        raise AlmosaicError(
            "export takes RUN OUT, --from-released FILE OUT or --to-released MODEL OUT;"
            f" found {' '.join(map(str, arguments.paths))} ({len(arguments.paths)} paths instead of {wanted})"
        )
    options = {
        name: value
        for name in ("preset", "labels", "std_factor", "heads", "probe_layer")
        if (value := getattr(arguments, name)) is not None
    }
    if options and not arguments.from_released:
        raise AlmosaicError(
            f"expected --{next(iter(options)).replace('_', '-')} with --from-released alone; leave it out"
        )
    out = arguments.paths[-1]
    with quiet_library():
        if arguments.from_released:
            released.convert_released(arguments.from_released, out, **options)
        elif arguments.to_released:
            released.write_released(arguments.to_released, out)
        else:
            export(arguments.paths[0], out, merge=arguments.merge)
    say(f"wrote {out}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    import importlib.util

    from almosaic.recipe import bundled

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if importlib.util.find_spec("gradio") is None:
        raise AlmosaicError("the demo needs gradio: pip install 'almosaic[demo]'")
    spec = importlib.util.spec_from_file_location("almosaic_demo", bundled("demo") / "app.py")
    if spec is None or spec.loader is None:
        raise AlmosaicError(
            f"the demo is missing from this installation (looked for {bundled('demo') / 'app.py'})"
        )
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    arguments.kept = "the page is closed"
    app.launch(arguments.model, host=arguments.host, port=arguments.port, share=arguments.share, report=say)
    return 0


@contextmanager
def _progress(total: int | None, unit: str) -> Iterator[Any]:
    """A progress bar on stderr; yields the function to call after each piece of work."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, file=sys.stderr, disable=None, leave=False) as bar:

        def advance(done: int | None = None, total: int | None = None) -> None:
            bar.total = total or bar.total
            bar.update()

        yield advance
