"""What may be typed behind `almosaic`: verbs, arguments and options, with a help line each."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# As in `data.chat_forms`, which is not imported for the sake of `--help`; a test compares them.
FORMATS = (
    *("auto", "messages", "sharegpt", "vila", "pairs", "query", "alpaca", "openaqa", "salmonn", "slam"),
    *("audio_flamingo_2", "mdl", "captions"),
)

Verbs = Mapping[str, Callable[[argparse.Namespace], int]]
"""What runs each verb and returns the exit status."""

_OVERRIDES = "recipe keys to change, e.g. stages.encoder.optim.steps=10 (list items by their id)"
_MODEL = "a model folder, or a run folder (its last stage is used)"


def build_parser(run: Verbs, version: str) -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = argparse.ArgumentParser(prog="almosaic", description="Train, ask and judge models that listen.")
    parser.add_argument("--version", action="version", version=version)
    parser.set_defaults(kept="nothing was left half written")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_recipe_verbs(verbs, run)
    _add_model_verbs(verbs, run)
    _add_check(verbs, run)
    return parser


def _add_check(verbs: Any, run: Verbs) -> None:
    check = verbs.add_parser("check", help="decode every clip of a chat file, manifest, folder or archive")
    check.add_argument(
        "data",
        metavar="DATA",
        nargs="+",
        help="a chat file (.jsonl, .json, .csv), a manifest, a folder of audio, a .tar archive or a pattern",
    )
    chat = check.add_argument_group("for chat files")
    chat.add_argument("--format", metavar="NAME", choices=FORMATS, help=f"one of {', '.join(FORMATS)}")
    chat.add_argument(
        "--audio-root",
        metavar="FOLDER",
        type=Path,
        help="where relative audio paths start (default: the file's)",
    )
    chat.add_argument(
        "--archives", metavar="TAR", nargs="+", help="archives or a pattern, in which clips are looked up"
    )
    chat.add_argument(
        "--questions", action="store_true", help="rows for `generate`, which need no answer to learn from"
    )
    chat.add_argument(
        "--model", metavar="MODEL", help="count the tokens of each row too, as this model would"
    )
    check.set_defaults(run=run["check"])


def _add_recipe_verbs(verbs: Any, run: Verbs) -> None:
    train = verbs.add_parser("train", help="run the stages of a recipe")
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file or a name from `almosaic recipe list`")
    train.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES)
    train.add_argument(
        "--resume", action="store_true", help="go on where an earlier run of this recipe stopped"
    )
    train.add_argument(
        "--stage", metavar="ID", help="run only this stage; the ones it builds on must be finished"
    )
    train.set_defaults(run=run["train"])

    evaluate = verbs.add_parser(
        "eval", help="probe, caption and question a model; deaf controls beside every score"
    )
    evaluate.add_argument("target", metavar="RECIPE-or-MODEL", help=f"a recipe with eval stages, or {_MODEL}")
    evaluate.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES)
    evaluate.set_defaults(run=run["eval"])

    recipe = verbs.add_parser("recipe", help="list recipes, or show one with everything filled in")
    actions = recipe.add_subparsers(metavar="list|show", required=True)
    actions.add_parser("list", help="names and what they are for").set_defaults(run=run["recipe list"])
    show = actions.add_parser("show", help="the resolved recipe as YAML")
    show.add_argument("recipe", metavar="RECIPE")
    show.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES)
    show.set_defaults(run=run["recipe show"])


def _add_model_verbs(verbs: Any, run: Verbs) -> None:
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
    embed.set_defaults(run=run["embed"])

    _add_generate(verbs, run)
    _add_export(verbs, run)
    demo = verbs.add_parser("demo", help="a chat page in the browser, on this machine only")
    demo.add_argument("model", metavar="MODEL", help=_MODEL)
    demo.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 opens it to your network (default: 127.0.0.1)"
    )
    demo.add_argument("--port", type=int, default=7860)
    demo.add_argument("--share", action="store_true", help="also publish a public link through gradio.live")
    demo.set_defaults(run=run["demo"])


def _add_generate(verbs: Any, run: Verbs) -> None:
    generate = verbs.add_parser("generate", help="captions of audio files, answers to questions about them")
    generate.add_argument("model", metavar="MODEL", help=_MODEL)
    generate.add_argument(
        "sources",
        metavar="AUDIO-or-QUESTIONS",
        nargs="+",
        help="audio files, folders of them, or chat files (.jsonl, .json, .csv) without answers",
    )
    generate.add_argument(
        "--prompt", metavar="TEXT", help="what to ask about each clip; needed for audio files"
    )
    generate.add_argument(
        "-o", "--output", metavar="OUT.jsonl", type=Path, help="continues the file if it exists"
    )
    generate.add_argument("--batch-size", type=int, default=8)
    generate.add_argument("--max-new-tokens", type=int, default=64)
    words = generate.add_argument_group("how words are chosen")
    words.add_argument(
        "--temperature", type=float, default=0.0, help="0 = always the likeliest word (default)"
    )
    words.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest words of this share")
    words.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest words")
    words.add_argument("--beams", type=int, metavar="N", dest="num_beams", help="search with N beams")
    words.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1 makes words that were said less likely"
    )
    words.add_argument("--seed", type=int, help="of the draws; the same seed gives the same answers")
    words.add_argument(
        "--num-return-sequences", type=int, metavar="N", help="answers to each question, under `predictions`"
    )
    generate.add_argument(
        "--max-audio-seconds",
        type=float,
        metavar="S",
        help="longest clip (default: as the model's processor says)",
    )
    generate.add_argument(
        "--allow-remote", action="store_true", help="fetch clips that chat files name by http(s)"
    )
    generate.add_argument(
        "--quantize", choices=("nf4", "fp4", "int8"), help="load the language model in 4 or 8 bits"
    )
    generate.set_defaults(run=run["generate"])


def _add_export(verbs: Any, run: Verbs) -> None:
    export = verbs.add_parser("export", help="write a complete Hugging Face checkpoint")
    export.add_argument(
        "paths", metavar="RUN OUT", nargs="+", type=Path, help="only OUT with --from-released, --to-released"
    )
    form = export.add_mutually_exclusive_group()
    form.add_argument(
        "--merge",
        dest="form",
        action="store_const",
        const="merged",
        help="fold LoRA into the language model (default: kept beside it)",
    )
    form.add_argument(
        "--adapter",
        dest="form",
        action="store_const",
        const="adapter",
        help="a peft folder: LoRA, projector and encoder for a language model that it names",
    )
    export.add_argument(
        "--max-shard-size", metavar="SIZE", help="several files of weights, each up to 5GB, say"
    )
    released = export.add_mutually_exclusive_group()
    released.add_argument(
        "--from-released", metavar="FILE", type=Path, help="convert published weights to a folder"
    )
    released.add_argument(
        "--to-released", metavar="MODEL", type=Path, help="write an encoder or classifier in that format"
    )
    published = export.add_argument_group("with --from-released")
    published.add_argument(
        "--preset",
        help="the release: audioset (default), esc50, speech_commands, envsdd, ltu, matpac",
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
    published.add_argument(
        "--language-model",
        metavar="FOLDER",
        type=Path,
        help="with --preset ltu: the Llama that audio-language weights belong to",
    )
    export.set_defaults(run=run["export"], form="full")
