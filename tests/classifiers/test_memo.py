"""A memory answers as the work does, and stays small whatever is asked."""

from __future__ import annotations

from classifiers.memo import LONGEST, Memo


def test_old_keys_are_not_worked_out_again() -> None:
    asked: list[str] = []
    memo = Memo[str, int](lambda key: asked.append(key) or len(key), 8)
    assert [memo["a"], memo["bb"], memo["a"]] == [1, 2, 1]
    assert asked == ["a", "bb"]


def test_neither_many_nor_long_keys_make_it_grow() -> None:
    memo = Memo[str, int](len, 8)
    assert [memo["x" * n] for n in range(1000)] == list(range(1000))
    assert len(memo) <= 8
    assert max(map(len, memo), default=0) <= LONGEST


def test_a_memory_full_of_what_does_not_return_starts_afresh() -> None:
    memo = Memo[int, int](abs, 8)
    for key in range(8):
        assert memo[key] == key
    assert set(memo) == set(range(8))
    for _ in range(100):
        assert memo[1000] == 1000
    assert 1000 in memo
    assert 0 not in memo
