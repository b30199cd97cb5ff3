"""Which sounds a pair of twin scenes holds: the same cast, arranged in two ways that change one answer.

A plan names labels only; `compose` finds clips for them and lays them out in time.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from almosaic.errors import AlmosaicError
from almosaic.scenes.planner import MIN_EVENTS, Place, Plan, Planner, Sound
from almosaic.scenes.scene import Template

ATTEMPTS = 50


def next_plan(planner: Planner, template: Template) -> Plan:
    """The next plan for a template.

    Raises:
        AlmosaicError: the bank has too few labels that may stand together.
    """
    for _ in range(ATTEMPTS):
        plan = PLANS[template](planner)
        if plan is not None:
            return plan
    raise AlmosaicError(
        f"expected a bank whose labels can be combined for the template {template!r}, found "
        f"{len(planner.bank.labels)} labels that cannot; add classes or groups, or leave the template out"
    )


def _presence(planner: Planner) -> Plan | None:
    return _exchange(planner, "presence", planner.number("presence fillers", (0, 1, 2)))


def _choice(planner: Planner) -> Plan | None:
    return _exchange(planner, "choice", planner.number("choice fillers", (0, 1)))


def _exchange(planner: Planner, template: Literal["presence", "choice"], fillers: int) -> Plan | None:
    """X among fillers, and C in its place among the same fillers."""
    bank = planner.bank
    sure = planner.sure()
    x = planner.deal(f"{template} one", sure)
    if x is None:
        return None
    c = planner.deal(
        f"{template} two",
        sure,
        lambda label: planner.comparable(label, x) and x in bank.apart[label],
    )
    if c is None:
        return None
    cast = [x, c]
    for _ in range(fillers):
        label = planner.deal(
            f"{template} filler",
            planner.usable("any"),
            lambda label: planner.companion(label, cast) and label in bank.apart[x] & bank.apart[c],
        )
        if label is None:
            return None
        cast.append(label)
    slots = planner.rng.permutation(fillers + 1)
    rest = tuple(Place(2 + i, int(slots[1 + i])) for i in range(fillers))
    twins = ((Place(0, int(slots[0])), *rest), (Place(1, int(slots[0])), *rest))
    asked: tuple[str, ...] = (x,)
    answers = ("yes", "no")
    if template == "choice":
        options = _options(planner, cast)
        if options is None:
            return None
        asked, answers = planner.shuffled((x, c, *options)), (x, c)
    sounds = tuple(Sound(label) for label in cast)
    return Plan(template, asked, answers, planner.heldout((x, c)), fillers + 1, sounds, twins)


def _options(planner: Planner, cast: Sequence[str]) -> list[str] | None:
    """Two wrong options that neither twin holds."""
    options: list[str] = []
    for _ in range(2):
        label = planner.deal(
            "choice option",
            planner.sure(),
            lambda label: (
                planner.bank.apart[label].issuperset(cast) and planner.companion(label, (*cast, *options))
            ),
        )
        if label is None:
            return None
        options.append(label)
    return options


def _order(planner: Planner, template: Literal["first", "before"]) -> Plan | None:
    """X before Y, and Y before X, with or without a third sound."""
    pair = planner.pair(planner.usable("any"), f"{template} ")
    if pair is None:
        return None
    cast = [*pair]
    if planner.number(f"{template} fillers", (0, 1)):
        third = planner.deal(
            f"{template} filler", planner.usable("any"), lambda label: planner.companion(label, pair)
        )
        if third is None:
            return None
        cast.append(third)
    slots = [int(slot) for slot in planner.rng.permutation(len(cast))]
    early, late = sorted(slots[:2])
    rest = tuple(Place(2, slot) for slot in slots[2:])
    twins = ((Place(0, early), Place(1, late), *rest), (Place(1, early), Place(0, late), *rest))
    asked = planner.shuffled(pair)
    answers = pair if template == "first" else _yes_no(asked == pair)
    sounds = tuple(Sound(label) for label in cast)
    return Plan(template, asked, answers, planner.heldout(pair), len(cast), sounds, twins)


def _next(planner: Planner) -> Plan | None:
    """A B C, and C B A: what is heard right after B."""
    pair = planner.pair(planner.usable("any"), "next ")
    if pair is None:
        return None
    (a, b) = pair
    c = planner.deal(
        "next three",
        planner.usable("any"),
        lambda label: planner.comparable(label, b) and planner.companion(label, [a]),
    )
    if c is None:
        return None
    sounds = (Sound(a), Sound(b), Sound(c))
    twins = (
        (Place(0, 0), Place(1, 1), Place(2, 2)),
        (Place(2, 0), Place(1, 1), Place(0, 2)),
    )
    return Plan("next", (b,), (c, a), planner.heldout((a, b), (b, c)), 3, sounds, twins)


def _count(planner: Planner) -> Plan | None:
    """One sound n times, and m times in some of the same places."""
    label = planner.deal("count", planner.usable("event", at_least=MIN_EVENTS))
    if label is None:
        return None
    numbers = planner.number_pair("count", planner.settings.count_limit)
    slots = max(numbers)
    twins = tuple(
        tuple(Place(int(slot), int(slot)) for slot in sorted(planner.rng.permutation(slots)[:number]))
        for number in numbers
    )
    same = bool(planner.number("count same", (0, 1)))
    answers = (str(numbers[0]), str(numbers[1]))
    sounds = (Sound(label, "event"),) * slots
    return Plan("count", (label,), answers, False, slots, sounds, (twins[0], twins[1]), same)


def _distinct(planner: Planner) -> Plan | None:
    """As many sounds in the same places, k of them different, and l: counting sounds is not enough."""
    numbers = planner.number_pair("distinct", planner.settings.sounds_limit)
    slots = max(numbers)
    cast: list[str] = []
    while len(cast) < slots:
        label = planner.deal("distinct", planner.usable("any"), lambda label: planner.companion(label, cast))
        if label is None:
            planner.pairs["distinct"].append(numbers)  # a lost pair would unbalance the round
            return None
        cast.append(label)
    twins = []
    for number in numbers:
        members = [int(member) for member in planner.rng.permutation(slots)[:number]]
        repeats = [members[int(i)] for i in planner.rng.integers(number, size=slots - number)]
        order = planner.rng.permutation(slots)
        line = [*members, *repeats]
        twins.append(tuple(Place(line[int(order[slot])], slot) for slot in range(slots)))
    answers = (str(numbers[0]), str(numbers[1]))
    sounds = tuple(Sound(label) for label in cast)
    return Plan("distinct", (), answers, False, slots, sounds, (twins[0], twins[1]))


def _louder(planner: Planner) -> Plan | None:
    """X Y with Y quiet, and with X quiet."""
    pair = planner.pair(planner.usable("any"), "louder ")
    if pair is None:
        return None
    first, second = (int(slot) for slot in planner.rng.permutation(2))
    twins = (
        (Place(0, first), Place(1, second, quiet=True)),
        (Place(0, first, quiet=True), Place(1, second)),
    )
    sounds = tuple(Sound(label) for label in pair)
    return Plan("louder", planner.shuffled(pair), pair, planner.heldout(pair), 2, sounds, twins)


def _longer(planner: Planner) -> Plan | None:
    """X Y with Y short, and with X short."""
    pair = planner.pair(planner.usable("long", planner.settings.long_seconds), "longer ")
    if pair is None:
        return None
    first, second = (int(slot) for slot in planner.rng.permutation(2))
    twins = (
        (Place(0, first), Place(1, second, short=True)),
        (Place(0, first, short=True), Place(1, second)),
    )
    sounds = tuple(Sound(label, "long") for label in pair)
    return Plan("longer", planner.shuffled(pair), pair, planner.heldout(pair), 2, sounds, twins)


def _overlap(planner: Planner) -> Plan | None:
    """Y begins while X lasts, and Y one after the other with X."""
    pair = planner.pair(planner.usable("any"), "overlap ")
    if pair is None:
        return None
    first, second = (int(slot) for slot in planner.rng.permutation(2))
    twins = (
        (Place(0, first), Place(1, first, inside=True)),
        (Place(0, first), Place(1, second)),
    )
    sounds = tuple(Sound(label) for label in pair)
    return Plan("overlap", planner.shuffled(pair), ("yes", "no"), planner.heldout(pair), 2, sounds, twins)


def _half(planner: Planner) -> Plan | None:
    """X in a quarter of the first half, and in one of the second, with or without another sound."""
    x = planner.deal("half", planner.usable("any"))
    if x is None:
        return None
    slots = [int(slot) for slot in (*planner.rng.permutation(2), *(2 + planner.rng.permutation(2)))]
    cast = [x]
    rest: tuple[Place, ...] = ()
    if planner.number("half fillers", (0, 1)):
        other = planner.deal(
            "half filler", planner.usable("any"), lambda label: planner.companion(label, [x])
        )
        if other is None:
            return None
        cast.append(other)
        rest = (Place(1, slots[int(planner.rng.choice([0, 2]))]),)
    twins = ((Place(0, slots[1]), *rest), (Place(0, slots[3]), *rest))
    sounds = tuple(Sound(label) for label in cast)
    return Plan("half", (x,), ("first", "second"), False, 4, sounds, twins)


def _yes_no(first_is_yes: bool) -> tuple[str, str]:
    return ("yes", "no") if first_is_yes else ("no", "yes")


PLANS: dict[Template, Callable[[Planner], Plan | None]] = {
    "presence": _presence,
    "first": lambda planner: _order(planner, "first"),
    "before": lambda planner: _order(planner, "before"),
    "next": _next,
    "count": _count,
    "distinct": _distinct,
    "louder": _louder,
    "longer": _longer,
    "overlap": _overlap,
    "half": _half,
    "choice": _choice,
}
