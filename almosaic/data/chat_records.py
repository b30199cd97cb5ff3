"""Records of other libraries as turns: one function for each form.

Where a form marks the place of a clip by a tag, every clip needs its tag; elsewhere the clips come first in
the user's turn. A function leaves nothing out of what it knows of a record: what cannot be honoured raises.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from almosaic.data.chat_turns import (
    AUDIO_TAGS,
    SOUND_TAGS,
    Clip,
    Record,
    TaggedClips,
    Turn,
    clip_name,
    clip_names,
    text_of,
)
from almosaic.data.prompts import CAPTION_PROMPTS, TASK_PROMPTS
from almosaic.errors import AlmosaicError
from almosaic.messages import ROLES, kind, read_parts

SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant",
}  # fmt: skip


def messages(record: Record, place: str, prompt: str | None) -> list[Turn]:
    """`messages` of role and content: `<audio>` tags and a list of clips, or typed parts, or both."""
    _no_prompt(prompt, place)
    given = _conversation(record, ("messages", "conversations"), place)
    clips = TaggedClips(record, place, AUDIO_TAGS)
    turns = _system(record, clips, place)
    for where, message in given:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise AlmosaicError(f"{where}: expected a role of {', '.join(ROLES)}, found {kind(role)}")
        _learned_as_usual(message, role == "assistant", where)
        _only(message, ("role", "content", "loss", "weight"), where)
        if isinstance(content, str):
            turns.append(Turn(role, clips.placed(content)))
        else:
            turns.append(Turn(role, [clips.of(part) for part in read_parts(content, where)]))
    return clips.used(turns)


def query(record: Record, place: str, prompt: str | None) -> list[Turn]:
    """ms-swift: `query`, `response`, earlier pairs in `history`, `system`; `<audio>` tags and `audios`."""
    _no_prompt(prompt, place)
    clips = TaggedClips(record, place, AUDIO_TAGS)
    turns = _system(record, clips, place) + _history(record, clips, place)
    return clips.used(turns + _asked(record, clips, text_of(record, "query", place), "response", place))


def alpaca(record: Record, place: str, prompt: str | None) -> list[Turn]:
    """`instruction`, `input`, `output`, `history`, `system`; `<audio>` tags and `audios`."""
    _no_prompt(prompt, place)
    clips = TaggedClips(record, place, AUDIO_TAGS)
    turns = _system(record, clips, place) + _history(record, clips, place)
    return clips.used(turns + _asked(record, clips, _instruction(record, place), "output", place))


def sharegpt(record: Record, place: str, prompt: str | None) -> list[Turn]:
    """`conversations` of from and value; `<audio>` tags and a list of clips."""
    return _from_and_value(record, place, prompt, AUDIO_TAGS)


def vila(record: Record, place: str, prompt: str | None) -> list[Turn]:
    """VILA, Audio Flamingo 3: `sound`, one or a list; `<sound>`, or `<sound-1>` for the first of the list."""
    return _from_and_value(record, place, prompt, SOUND_TAGS)


def pairs(record: Record, place: str, prompt: str | None) -> list[Turn]:
    """ms-swift: `conversation`, a list of `human` and `assistant` texts; `<audio>` tags and `audios`."""
    _no_prompt(prompt, place)
    clips = TaggedClips(record, place, AUDIO_TAGS)
    turns = _system(record, clips, place)
    for where, pair in _conversation(record, ("conversation",), place):
        _only(pair, ("human", "assistant"), where)
        turns += _asked(pair, clips, text_of(pair, "human", where), "assistant", where)
    return clips.used(turns)


def openaqa(record: Record, place: str, prompt: str | None) -> list[Turn]:
    """LTU, GAMA: `instruction`, `input`, `audio_id`, `output`."""
    _no_prompt(prompt, place)
    question = _instruction(record, place)
    return _about([clip_name(record, "audio_id", place)], question, record, "output", place)


def salmonn(record: Record, place: str, prompt: str | None) -> list[Turn]:
    """SALMONN: `path`, `text`, `task`, the question or a word of it in `Q`, further clips in `expand_wav`."""
    clips = [clip_name(record, "path", place), *clip_names(record.get("expand_wav"), "expand_wav", place)]
    task, word = text_of(record, "task", place), record.get("Q")
    known = TASK_PROMPTS.get(task)
    wording = known if word is not None else prompt or known
    if word is not None and (wording is None or "{}" not in wording):
        wording = prompt
    if wording is None or ("{}" in wording) != (word is not None):
        needs = "a prompt with {} where Q goes" if word is not None else "a prompt without {}"
        raise AlmosaicError(
            f"{place}: expected {needs} for the task {task!r}, found {kind(wording)}; "
            "set `prompt` for a file of this task alone"
        )
    question = wording if word is None else wording.replace("{}", text_of(record, "Q", place))
    return _about(clips, question, record, "text", place)


def slam(record: Record, place: str, prompt: str | None) -> list[Turn]:
    """SLAM-LLM: `key`, `source`, `target`, `prompt`."""
    question = _own_prompt(record, place, prompt)
    if question is None:
        raise AlmosaicError(f"{place}: the row has no prompt; set `prompt`, which is asked of every such row")
    return _about([clip_name(record, "source", place)], question, record, "target", place)


def audio_flamingo_2(record: Record, place: str, prompt: str | None) -> list[Turn]:
    """Audio Flamingo 2: `name` in the manifest's `split_path`, `prompt`, `output`."""
    _no_prompt(prompt, place)
    folders = [text_of(record, key, place) for key in ("dataset_path", "split_path") if record.get(key)]
    name = "/".join([*(folder.rstrip("/") for folder in folders), clip_name(record, "name", place)])
    return _about([name], text_of(record, "prompt", place), record, "output", place)


def mdl(record: Record, place: str, prompt: str | None) -> list[Turn]:
    """mdl-toolkit: `audio`, `system_prompt`, `user_prompt`, `prediction`."""
    question = text_of(record, "user_prompt", place) if record.get("user_prompt") else prompt
    if question is None:
        raise AlmosaicError(f"{place}: expected a user_prompt, found none; set `prompt`, which then is asked")
    turns = _about([clip_name(record, "audio", place)], question, record, "prediction", place)
    if record.get("system_prompt"):
        turns.insert(0, Turn("system", [text_of(record, "system_prompt", place)]))
    return turns


def captions(record: Record, place: str, prompt: str | None) -> list[Turn]:
    """Our own table: `audio`, `caption`, `prompt`."""
    question = _own_prompt(record, place, prompt) or CAPTION_PROMPTS[0]
    return _about([clip_name(record, "audio", place)], question, record, "caption", place)


def _from_and_value(record: Record, place: str, prompt: str | None, tag: re.Pattern[str]) -> list[Turn]:
    _no_prompt(prompt, place)
    clips = TaggedClips(record, place, tag)
    turns = _system(record, clips, place)
    for where, message in _conversation(record, ("conversations",), place):
        speaker = message.get("from")
        if speaker not in SHAREGPT_ROLES:
            known = ", ".join(SHAREGPT_ROLES)
            raise AlmosaicError(f"{where}: expected from to be one of {known}, found {kind(speaker)}")
        role = SHAREGPT_ROLES[speaker]
        _learned_as_usual(message, role == "assistant", where)
        _only(message, ("from", "value", "loss", "weight"), where)
        turns.append(Turn(role, clips.placed(text_of(message, "value", where))))
    return clips.used(turns)


def _conversation(record: Record, keys: Sequence[str], place: str) -> Iterator[tuple[str, Record]]:
    """Each message of the list under one of these keys, with its place."""
    found = [key for key in keys if record.get(key) is not None]
    if len(found) > 1:
        raise AlmosaicError(f"{place}: expected one conversation, found {' and '.join(found)}")
    given = record[found[0]] if found else None
    if not isinstance(given, list) or not given:
        raise AlmosaicError(f"{place}: expected a non-empty list `{keys[0]}`, found {kind(given)}")
    for number, message in enumerate(given, start=1):
        where = f"{place}, message {number}"
        if not isinstance(message, Mapping):
            raise AlmosaicError(f"{where}: expected an object, found {kind(message)}")
        yield where, message


def _learned_as_usual(message: Record, answer: bool, where: str) -> None:
    """Answers are learned and nothing else is: what a message says of its own loss must agree."""
    for key in ("loss", "weight"):
        wanted = message.get(key)
        if wanted is not None and (wanted not in (0, 1) or bool(wanted) != answer):
            raise AlmosaicError(
                f"{where}: {key} is {wanted!r}, but every answer is learned in full and nothing else is; "
                "remove the key or the message"
            )


def _only(message: Record, known: Sequence[str], where: str) -> None:
    """Refuse what a message says beyond these keys: tool calls, names, thoughts."""
    unknown = [key for key, value in message.items() if key not in known and value not in (None, [], {}, "")]
    if unknown:
        raise AlmosaicError(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(known)}")


def _system(record: Record, clips: TaggedClips, place: str) -> list[Turn]:
    return [Turn("system", clips.placed(text_of(record, "system", place)))] if record.get("system") else []


def _history(record: Record, clips: TaggedClips, place: str) -> list[Turn]:
    turns: list[Turn] = []
    for pair in record.get("history") or ():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise AlmosaicError(f"{place}: expected history as a list of two texts each, found {kind(pair)}")
        turns += [Turn("user", clips.placed(pair[0])), Turn("assistant", [pair[1]])]
    return turns


def _asked(record: Record, clips: TaggedClips, question: str, answer: str, place: str) -> list[Turn]:
    """A question with its tags and, where the record has one, its answer."""
    turns = [Turn("user", clips.placed(question))]
    given = record.get(answer) is not None
    return [*turns, Turn("assistant", [text_of(record, answer, place)])] if given else turns


def _about(clips: Sequence[str], question: str, record: Record, answer: str, place: str) -> list[Turn]:
    """The clips, a question about them and, where the record has one, the answer."""
    turns = [Turn("user", [*map(Clip, clips), question])]
    given = record.get(answer) is not None
    return [*turns, Turn("assistant", [text_of(record, answer, place)])] if given else turns


def _instruction(record: Record, place: str) -> str:
    question = text_of(record, "instruction", place)
    return f"{question}\n{text_of(record, 'input', place)}" if record.get("input") else question


def _own_prompt(record: Record, place: str, prompt: str | None) -> str | None:
    return text_of(record, "prompt", place) if record.get("prompt") else prompt


def _no_prompt(prompt: str | None, place: str) -> None:
    if prompt is not None:
        raise AlmosaicError(f"{place}: the row brings its own question; leave `prompt` out")
