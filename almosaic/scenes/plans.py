"""Which sounds a pair of twin scenes holds: the same cast, arranged in two ways that change one answer.

A plan names labels only; `compose` finds clips for them and lays them out in time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from almosaic.errors import AlmosaicError
from almosaic.scenes.clips import is_heldout
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
    """X among fillers, and C in its place among the same fillers."""
    bank, sure = planner.bank, planner.sure()
    x = planner.deal("presence one", sure)
    if x is None:
        return None
    c = planner.deal(
        "presence two", sure, lambda label: planner.comparable(label, x) and x in bank.apart[label]
    )
    if c is None:
        return None
    fillers = _fillers(planner, "presence", [x, c], [x], planner.number("presence fillers", (0, 1, 2)))
    if fillers is None:
        return None
    return _exchange(planner, "presence", (x,), (x, c), fillers, planner.heldout((x, c)), ("yes", "no"))


def _choice(planner: Planner) -> Plan | None:
    """Four options, one of them among fillers, and another one in its place.

    All four could stand for each other: which two are heard is drawn last, so the text cannot tell.
    """
    new_pair = not planner.training and planner.number("choice held out", (0, 0, 0, 0, 1)) == 1
    new_pair = new_pair and planner.settings.heldout_label_pairs
    options: list[str] = []
    while len(options) < 4:
        accept = partial(_joins_options, planner, options, new_pair and len(options) == 1)
        label = planner.deal("choice", planner.sure(), accept)
        if label is None:
            return None
        options.append(label)
    asked = planner.shuffled(options)
    fillers = _fillers(planner, "choice", asked, asked, planner.number("choice fillers", (0, 1)))
    if fillers is None:
        return None
    one, other = (asked[int(place)] for place in planner.rng.permutation(4)[:2])
    return _exchange(planner, "choice", asked, (one, other), fillers, new_pair, (one, other))


def _joins_options(planner: Planner, options: Sequence[str], as_new_pair: bool, label: str) -> bool:
    if not planner.bank.apart[label].issuperset(options):
        return False
    return is_heldout(label, options[0]) if as_new_pair else planner.companion(label, options)


def _fillers(
    planner: Planner, role: str, others: Sequence[str], asked: Sequence[str], count: int
) -> list[str] | None:
    """Further sounds that may join the others, and beside which each of the asked labels can be absent."""
    fillers: list[str] = []
    for _ in range(count):
        label = planner.deal(
            f"{role} filler",
            planner.usable("any"),
            lambda label: (
                planner.companion(label, [*others, *fillers])
                and all(label in planner.bank.apart[x] for x in asked)
            ),
        )
        if label is None:
            return None
        fillers.append(label)
    return fillers


def _exchange(
    planner: Planner,
    template: Template,
    asked: tuple[str, ...],
    mains: tuple[str, str],
    fillers: Sequence[str],
    heldout: bool,
    answers: tuple[str, str],
) -> Plan:
    """One of the mains among the fillers, and the other one in its place."""
    slots = [int(slot) for slot in planner.rng.permutation(len(fillers) + 1)]
    rest = tuple(Place(member, slot) for member, slot in enumerate(slots[1:], start=2))
    twins = ((Place(0, slots[0]), *rest), (Place(1, slots[0]), *rest))
    cast = tuple(Sound(label) for label in (*mains, *fillers))
    return Plan(template, asked, answers, heldout, len(slots), cast, twins)


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
