"""Which form a chat record has: the keys that each form needs, may have and carries along."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from almosaic.data import chat_records
from almosaic.data.chat_turns import TAG, Record, Turn
from almosaic.errors import AlmosaicError

Format = Literal[
    "auto", "messages", "sharegpt", "vila", "pairs", "query", "alpaca", "openaqa", "salmonn", "slam",
    "audio_flamingo_2", "mdl", "captions",
]  # fmt: skip

# Notes about a row that say nothing to a model, known from published files.
CARRIED = frozenset(
    {"id", "task", "dataset", "duration", "split", "source", "license", "attribution", "category", "channel"}
)
REFUSED = {
    **dict.fromkeys(("image", "images", "video", "videos"), "only audio is heard here"),
    **dict.fromkeys(("tools", "tool_calls", "functions"), "tools cannot be called here"),
    **dict.fromkeys(("chosen", "rejected", "rejected_response", "label"), "preferences are not learned here"),
    "objects": "places in pictures are not learned here",
}


class Form(NamedTuple):
    """A form of records.

    Attributes:
        read: makes turns of a record, its place and the recipe's prompt.
        needs: groups of keys, of each of which one must be there.
        may: other keys that it reads.
        answer: the key of the answer, where it is one.
        shape: tells it from other forms with the same keys.
    """

    read: Callable[[Record, str, str | None], list[Turn]]
    needs: Sequence[tuple[str, ...]]
    may: Sequence[str] = ()
    answer: str | None = None
    shape: Callable[[Record], bool] = lambda record: True

    def missing(self, keys: Sequence[str]) -> list[str]:
        """The groups of which a record with these keys has none."""
        return [" or ".join(group) for group in self.needs if not set(group) & set(keys)]

    def unknown(self, keys: Sequence[str]) -> list[str]:
        """The keys that would be dropped."""
        known = CARRIED.union(self.may, *self.needs, () if self.answer is None else (self.answer,))
        return [key for key in keys if key not in known]


def _values(record: Record) -> list[str]:
    """The texts of `conversations`, empty where its messages are not of from and value."""
    given = record.get("conversations")
    listed = [one for one in given if isinstance(one, Mapping)] if isinstance(given, list) else []
    return [str(one.get("value")) for one in listed if "from" in one]


def _of_roles(record: Record) -> bool:
    return "messages" in record or not _values(record)


def _of_sharegpt(record: Record) -> bool:
    texts = _values(record)
    return bool(texts) and (record.get("sound") is None or any(TAG in text for text in texts))


def _of_vila(record: Record) -> bool:
    texts = _values(record)
    return bool(texts) and (any("<sound" in text for text in texts) or not any(TAG in t for t in texts))


FORMS: dict[str, Form] = {
    "messages": Form(
        chat_records.messages, [("messages", "conversations")], ("audios", "audio", "system"), shape=_of_roles
    ),
    "sharegpt": Form(
        chat_records.sharegpt,
        [("conversations",)],
        ("audios", "audio", "sound", "system"),
        shape=_of_sharegpt,
    ),
    "vila": Form(chat_records.vila, [("conversations",), ("sound",)], ("system",), shape=_of_vila),
    "pairs": Form(chat_records.pairs, [("conversation",)], ("audios", "audio", "system")),
    "query": Form(
        chat_records.query, [("query",)], ("history", "system", "audios", "audio"), answer="response"
    ),
    "alpaca": Form(
        chat_records.alpaca,
        [("instruction",)],
        ("input", "history", "system", "audios", "audio"),
        answer="output",
    ),
    "openaqa": Form(chat_records.openaqa, [("instruction",), ("audio_id",)], ("input",), answer="output"),
    "salmonn": Form(chat_records.salmonn, [("path",), ("task",)], ("Q", "expand_wav"), answer="text"),
    "slam": Form(chat_records.slam, [("key",), ("source",)], ("prompt",), answer="target"),
    "audio_flamingo_2": Form(
        chat_records.audio_flamingo_2,
        [("name",), ("prompt",)],
        ("dataset_path", "split_path"),
        answer="output",
    ),
    "mdl": Form(
        chat_records.mdl, [("audio",), ("user_prompt", "prediction")], ("system_prompt",), answer="prediction"
    ),
    "captions": Form(chat_records.captions, [("audio",), ("caption",)], ("prompt",), answer="caption"),
}


def recognise(record: Record, form: Format, place: str) -> str:
    """The name of the record's form, which is `form` unless that is `auto`.

    Raises:
        AlmosaicError: the record lacks a key of the form or has one that would be dropped; with `auto`, it
            fits no form, or more than one.
    """
    keys = tuple(key for key, value in record.items() if value is not None)
    if form != "auto":
        if missing := FORMS[form].missing(keys):
            raise AlmosaicError(
                f"{place}: a record of the format {form} needs the keys {', '.join(missing)}, "
                f"found {', '.join(keys) or 'none'}"
            )
        _refuse_unknown(form, _said(record, FORMS[form].unknown(keys)), place)
        return form
    candidates = [found for found in _candidates(keys) if FORMS[found[0]].shape(record)]
    fitting = [(name, _said(record, unknown)) for name, unknown in candidates]
    whole = [name for name, unknown in candidates if not unknown]
    whole = whole or [name for name, unknown in fitting if not unknown]
    if len(whole) == 1:
        return whole[0]
    if whole:
        raise AlmosaicError(f"{place}: the record may be of the format {' or '.join(whole)}; set `format`")
    if fitting:
        _refuse_unknown(*min(fitting, key=lambda found: len(found[1])), place)
    hint = "; a manifest is {name: captions, manifest: FILE}" if "captions" in record else ""
    raise AlmosaicError(
        f"{place}: expected a record of a known format ({', '.join(FORMS)}), "
        f"found the keys {', '.join(map(str, keys)) or 'none'}{hint}"
    )


def may_be_chat(record: Record) -> bool:
    """Whether a record has the keys of a form; of a table's form only without `id`, which manifests have."""
    names = {name for name, _ in _candidates(tuple(key for key in record if record[key] is not None))}
    return bool(names - {"mdl", "captions"}) or (bool(names) and "id" not in record)


@lru_cache(maxsize=256)
def _candidates(keys: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """The forms whose keys are there, each with the keys that it does not know."""
    return [(name, form.unknown(keys)) for name, form in FORMS.items() if not form.missing(keys)]


def _said(record: Record, keys: Sequence[str]) -> list[str]:
    """Those of the keys under which something is said."""
    return [key for key in keys if record[key] not in ([], {}, "")]


def _refuse_unknown(form: str, unknown: Sequence[str], place: str) -> None:
    """Raise for a key that would be dropped without a word."""
    if not unknown:
        return
    if reason := REFUSED.get(unknown[0]):
        raise AlmosaicError(f"{place}: the key {unknown[0]!r}: {reason}; remove it, or leave the row out")
    own = FORMS[form]
    known = [*(" or ".join(group) for group in own.needs), *own.may, *([own.answer] if own.answer else [])]
    raise AlmosaicError(
        f"{place}: unknown key {unknown[0]!r} in a record of the format {form}; known keys: "
        f"{', '.join(known)}, and the notes {', '.join(sorted(CARRIED))}"
    )
