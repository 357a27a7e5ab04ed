from __future__ import annotations

import time

from holdfast.state.tree_view import Leaf, Line, tree_lines, value_lines
from holdfast.state.values import Opaque, Typed


def shown(leaves: list[tuple[str, str]]) -> list[str]:
    lines = tree_lines([Leaf(path, text, 4) for path, text in leaves])
    return [
        f"{'  ' * one.depth}{one.name} {one.text}".rstrip() + (f" x{one.count}" if one.count > 1 else "")
        for one in lines
    ]


def block(index: int, size: int = 4) -> list[tuple[str, str]]:
    return [(f"layers.{index}.attn.weight", f"({size},)"), (f"layers.{index}.mlp.weight", "(8,)")]


def test_repeated_blocks_are_shown_once() -> None:
    leaves = [
        ("embed.weight", "(9,)"),
        *(item for index in range(32) for item in block(index)),
        ("head.weight", "(9,)"),
    ]
    assert shown(leaves) == [
        "embed.weight (9,)",
        "layers.{0..31} x32",
        "  attn.weight (4,) x32",
        "  mlp.weight (8,) x32",
        "head.weight (9,)",
    ]


def test_a_block_that_differs_stands_alone() -> None:
    leaves = [item for index in range(6) for item in block(index, 5 if index == 3 else 4)]
    assert shown(leaves) == [
        "layers",
        "  {0..2} x3",
        "    attn.weight (4,) x3",
        "    mlp.weight (8,) x3",
        "  3",
        "    attn.weight (5,)",
        "    mlp.weight (8,)",
        "  {4..5} x2",
        "    attn.weight (4,) x2",
        "    mlp.weight (8,) x2",
    ]


def test_blocks_in_blocks_multiply_and_bytes_add_up() -> None:
    leaves = [Leaf(f"a.{i}.b.{j}.w", "(1,)", 4) for i in range(3) for j in range(5)]
    assert tree_lines(leaves) == [Line(0, "a.{0..2}.b.{0..4}.w", "(1,)", 15, 60)]


def test_numbers_with_gaps_and_names_that_are_no_numbers() -> None:
    assert shown([(f"net.{index}.weight", "(3,)") for index in (0, 2, 4)]) == ["net.{0,2,4}.weight (3,) x3"]
    many = shown([(f"net.{2 * index}.weight", "(3,)") for index in range(20)])
    assert many == ["net.{0,2,4,6,8,10,12,14,..38}.weight (3,) x20"]
    assert shown([("conv1.weight", "(3,)"), ("conv2.weight", "(3,)")]) == ["conv1.weight (3,)", "conv2.weight (3,)"]


def test_a_name_that_is_both_a_leaf_and_a_level() -> None:
    assert shown([("a", "(1,)"), ("a.b", "(2,)"), ("a", "(3,)")]) == ["a", "a (1,)", "a (3,)", "  b (2,)"]


def test_nothing_and_one() -> None:
    assert tree_lines([]) == []
    assert shown([("(root)", "(1,)")]) == ["(root) (1,)"]


def test_depth_and_number_are_no_problem() -> None:
    assert len(tree_lines([Leaf(".".join("a" * 20_000), "x")])) == 1
    start = time.perf_counter()
    assert len(tree_lines([Leaf(f"layers.{index}.weight", "(64,)", 256) for index in range(50_000)])) == 1
    assert time.perf_counter() - start < 20


def test_plain_values() -> None:
    tree = {
        "epoch": 3,
        "model": {"w": object()},
        "optimizer": {"param_groups": [{"lr": 0.1, "betas": Typed("tuple", [0.9, 0.999]), "params": list(range(100))}]},
        "args": Typed("namespace", {"name": "x" * 100, "path": Typed("path", "a/b")}),
        "counts": Typed("dict", [[0, "zero"], [1, None]]),
        "empty": {},
        "strange": Opaque("my.Net"),
    }
    assert list(value_lines(tree)) == [
        ("epoch", "3"),
        ("optimizer.param_groups.0.lr", "0.1"),
        ("optimizer.param_groups.0.betas", "[0.9, 0.999]"),
        ("optimizer.param_groups.0.params", "[0, 1, 2, ... 100 items]"),
        ("args.name", f"'{'x' * 59}... 102 characters"),
        ("args.path", "path('a/b')"),
        ("counts.0", "'zero'"),
        ("counts.1", "None"),
        ("empty", "{}"),
        ("strange", "object of class my.Net"),
    ]


def test_numbers_that_a_file_has_as_text_are_one_range() -> None:
    assert shown([(f"net.{index}.weight", "(3,)") for index in sorted(map(str, range(12)))]) == [
        "net.{0..11}.weight (3,) x12"
    ]


def test_many_blocks_that_differ_in_sizes_alone_are_one() -> None:
    leaves = [
        Leaf(f"state.{index}.{name}", text, size)
        for index in range(40)
        for name, text, size in (("step", "()", 4), ("avg", f"({index % 3},)", index % 3))
    ]
    assert tree_lines(leaves) == [
        Line(0, "state.{0..39}", "", 40, 160 + 39),
        Line(1, "step", "()", 40, 160),
        Line(1, "avg", "(0,), ... 3 kinds", 40, 39),
    ]
    assert len(tree_lines(leaves[:24])) > 12  # twelve blocks are still shown one by one


def test_many_blocks_are_only_one_where_their_names_agree() -> None:
    leaves = [(f"n.{index}.{'w' if index < 20 else 'v'}", f"({index},)") for index in range(40)]
    assert shown([*leaves, ("n.tail", "()")]) == [
        "n",
        "  {0..19}.w (0,), ... 20 kinds x20",
        "  {20..39}.v (20,), ... 20 kinds x20",
        "  tail ()",
    ]


def test_blocks_inside_merged_blocks_multiply() -> None:
    leaves = [Leaf(f"a.{i}.b.{j}.w", f"({i},)", 4) for i in range(20) for j in range(3)]
    assert tree_lines(leaves) == [
        Line(0, "a.{0..19}.b", "", 20, 240),
        Line(1, "0.w", "(0,), ... 20 kinds", 20, 80),
        Line(1, "1.w", "(0,), ... 20 kinds", 20, 80),
        Line(1, "2.w", "(0,), ... 20 kinds", 20, 80),
    ]


def test_a_number_too_long_to_be_read_is_a_name() -> None:
    assert len(shown([(f"net.{'9' * 5000}{index}.w", "()") for index in range(20)])) == 21


def test_merging_does_not_recurse() -> None:
    leaves = [(f"n.{index}.{'x.' * 5000}w", f"({index},)") for index in range(20)]
    (line,) = shown(leaves)
    assert line.endswith(".w (0,), ... 20 kinds x20")
