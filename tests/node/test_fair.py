"""Who is next when many share a queue: its promises, against random arrivals."""

import random
from collections import Counter, defaultdict

from node.fair import FairQueue

HEAVIEST = 50


def taken(queue: FairQueue[str], most: int = 10_000) -> str:
    """What comes out, one letter after the other."""
    out = ""
    while len(out) < most and (item := queue.pop()) is not None:
        out += item[0]
    return out


def test_lines_of_equal_weights_take_turns_and_keep_their_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in "abcdefgh":
        queue.push(1, item, 7)
    for item in "ABC":
        queue.push(2, item, 7)
    queue.push(3, "x", 7)
    assert taken(queue) == "aAxbBcCdefgh"
    assert not queue and not queue.lines


def test_whoever_was_not_waiting_is_before_all_but_one_item_of_each_other() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in range(10_000):
        queue.push(item % 3, "abc"[item % 3], 5)
    assert taken(queue, 1000).count("a") == 334
    queue.push(7, "x", 5)
    assert "x" in taken(queue, 4)


def test_heavy_items_of_one_are_no_delay_for_the_light_ones_of_another() -> None:
    queue: FairQueue[str] = FairQueue()
    for owner in range(20):
        for _ in range(3):
            queue.push(owner, "h", 1000)
    assert taken(queue, 20) == "h" * 20
    for _ in range(100):
        queue.push(99, "l", 10)
    assert taken(queue, 100).count("l") > 90


def test_who_comes_back_after_each_item_gets_no_more_than_who_stays() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push(1, "s", 10)
    out = ""
    while len(out) < 100:
        if not queue.weight(2):
            queue.push(2, "r", 10)
        out += taken(queue, 1)
    assert out == "sr" * 50


def test_nothing_is_left_of_an_owner_that_is_forgotten() -> None:
    queue: FairQueue[str] = FairQueue()
    for owner in (1, 2, 3):
        for item in "ab":
            queue.push(owner, f"{owner}{item}", 1)
    assert queue.pop() == ("1a", 1)
    queue.forget(1)
    queue.forget(2)
    queue.forget(4)  # never seen
    assert queue.lines == 1
    assert queue.pop() == ("3a", 1)
    queue.forget(3)
    assert not queue and queue.pop() is None
    assert (queue._lines, queue._ends, queue._heads) == ({}, {}, [])


def test_of_lines_that_never_empty_none_gets_more_than_another_but_for_two_items() -> None:
    """Theorem 1 of Goyal, Vin and Cheng, at every moment of random runs; and every item comes out once, each line in
    its order."""
    for seed in range(30):
        rng = random.Random(seed)
        queue: FairQueue[tuple[int, int]] = FairQueue()
        pushed: dict[int, int] = Counter()
        out: dict[int, list[int]] = defaultdict(list)
        since: dict[int, dict[int, int]] = {}  # owner -> what each had been served when it began to wait
        served: Counter[int] = Counter()
        for _ in range(2000):
            owner = rng.randrange(1, 6)
            if rng.random() < 0.55:
                if not queue.weight(owner):
                    since[owner] = dict(served)
                queue.push(owner, (owner, pushed[owner]), rng.randint(1, HEAVIEST))
                pushed[owner] += 1
                continue
            item = queue.pop()
            if item is None:
                continue
            (owner, number), weight = item
            out[owner].append(number)
            served[owner] += weight
            if not queue.weight(owner):
                del since[owner]
            for a in since:
                for b in since:
                    both = max(since[a], since[b], key=lambda had: sum(had.values()))  # since the later of the two
                    gained = [served[x] - both.get(x, 0) for x in (a, b)]
                    assert abs(gained[0] - gained[1]) <= 2 * HEAVIEST, (seed, a, b, gained)
        while (item := queue.pop()) is not None:
            out[item[0][0]].append(item[0][1])
        assert {owner: list(range(count)) for owner, count in pushed.items()} == out, seed
