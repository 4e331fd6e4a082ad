"""The operator dies anywhere in a life, is started again, and the end is the same.

For every n, it is killed (SIGKILL) before its n-th write reaches the API server, and in another life after the API server answered that write
and before the operator heard of it. First comes a life without a death: it tells how many writes there are, and what the end must be.

The n-th write is not the same one in each life: a write may be refused and repeated, as the state API writes too, and whether it is worth
showing that a pod runs depends on how fast all goes. So there are a few points more than writes, a life may turn out to have no such write,
and in the end it is asked that every kind of write was died at, on both sides.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from proxy import EVENTS, Point, When, kind_of
from run_histories import Life, Story, World

AT_ONCE = 5
"""Lives side by side. Most of their time goes by in waiting; more only make each slower on two cores."""
MORE_WRITES = 2
"""How many more writes a life may have than the peaceful one, and still be died in at its very end."""

Check = Callable[[Life, Life], None]
"""What must be of a life, beside the peaceful one; an AssertionError says what is not."""


@dataclass(frozen=True)
class Told:
    """What is to be said of one life."""

    died: tuple[str, When] | None
    wrong: str


def die_everywhere(world: World, story: Story, check: Check, *, at_each_event: bool = True) -> Life:
    """Live it once in peace, then once with each death; compare. The answer is the peaceful life.

    Without `at_each_event` it is died at one Event only.
    """
    peaceful = world.live(story, None)
    assert peaceful.starts == 1, f"the operator ended by itself:\n{peaceful.log[-3000:]}"
    check(peaceful, peaceful)
    kinds = {kind_of(write) for write in peaceful.writes}
    told = _live_all(world, story, peaceful, check, _points_of(peaceful, at_each_event=at_each_event))
    # A kind that was never the n-th one, in the life that was to die there.
    missed = {(kind, when) for kind in kinds for when in When} - {one.died for one in told}
    told += _live_all(world, story, peaceful, check, [Point(1, when, kind) for kind, when in missed])
    assert not (wrong := [one.wrong for one in told if one.wrong]), "\n".join(wrong)
    died = {one.died for one in told}
    assert all((kind, when) in died for kind in kinds for when in When), f"of {kinds} died only at {died}"
    return peaceful


def _points_of(peaceful: Life, *, at_each_event: bool) -> list[Point]:
    events = sum(kind_of(write) == EVENTS for write in peaceful.writes)
    numbers = {None: len(peaceful.writes) - events} | ({EVENTS: events} if at_each_event else {})
    return [
        Point(number, when, kind)
        for kind, noted in numbers.items()
        for number in range(1, noted + MORE_WRITES + 1)
        for when in When
    ]


def _live_all(world: World, story: Story, peaceful: Life, check: Check, points: list[Point]) -> list[Told]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda point: _live(world, story, peaceful, check, point), points))


def _live(world: World, story: Story, peaceful: Life, check: Check, point: Point) -> Told:
    died = None
    try:
        life = world.live(story, point)
        if life.struck is None:
            assert sum(map(point.counts, life.writes)) < point.number, f"the proxy did not kill: {life.writes}"
            assert life.starts == 1, f"the operator ended by itself:\n{life.log[-3000:]}"
        else:
            died = kind_of(life.struck), point.when
            assert life.starts == 2, f"it was started {life.starts} times"
        check(life, peaceful)
    except AssertionError as error:
        return Told(died, f"died {point}: {error}")
    return Told(died, "")
