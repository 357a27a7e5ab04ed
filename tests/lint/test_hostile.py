"""A script is a file from outside: whatever is in it, lint ends with an answer or one line, soon, in bounded memory."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import holdfast
from holdfast.errors import NotFound, RefusedFile, StorageError, UnknownFormat
from holdfast.lint.linting import lint
from holdfast.lint.source import MOST_CODE

Found = Callable[..., Any]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"x = 1\nprint 'python 2'\n", r"script\.py:2`: is no Python: Missing parentheses"),
        (b"def f(:\n", r"script\.py:1`: is no Python"),
        (b"a = 1\nb = '\x00'\n", r"script\.py:2`: has a null byte"),
        (b"a = 1\nb = '\xff\xfe'\n", r"script\.py:2`: is not utf-8, as it should be: save it as UTF-8"),
        (b"# coding: gibberish\n", r"script\.py`: names an encoding that is not known"),
        (b"# coding: zlib\n", r"names an encoding that is not known"),
        (b"# coding: punycode\n", r"says that it is in punycode"),
        (b"\xff\xfe" + "import torch".encode("utf-16-le"), r"encoding|utf-8"),
    ],
)
def test_what_is_no_python_is_one_line_that_names_the_place(text: bytes, says: str, found: Found) -> None:
    with pytest.raises(UnknownFormat, match=says) as caught:
        found(text)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"\n", b"# nothing", b"\x0c\nimport torch\n", b"\xef\xbb\xbfimport torch\n"])
def test_small_scripts_are_fine(text: bytes, found: Found) -> None:
    assert found(text) == ()


@pytest.mark.parametrize("name", ["latin-1", "cp1252", "gbk", "gb18030", "big5", "shift_jis", "koi8-r"])
def test_scripts_in_other_encodings(name: str, found: Found) -> None:
    text = f"# -*- coding: {name} -*-\nbest = model.state_dict()  # "
    word = {"latin-1": "é", "cp1252": "é", "koi8-r": "я"}.get(name, "中")
    assert [one.rule.code for one in found((text + word).encode(name))] == ["HF001"]


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5_000 + ")" * 5_000,
        "[" * 150 + "]" * 150,
        "-" * 200_000 + "1",
        "not " * 100_000 + "x",
        "x = " + "a." * 100_000 + "b",
        "x = " + "1+" * 100_000 + "1",
        "x = y" + "[0]" * 50_000,
        "x = f" + "()" * 50_000,
        "".join(f"{' ' * i}if x:\n" for i in range(150)) + " " * 150 + "pass",
        "".join(f"{' ' * i}for x in y:\n" for i in range(99)) + " " * 99 + "torch.save(a, b)",
        "x = " + "lambda: " * 3_000 + "1",
        "f'" + "{x:" * 200 + "}" * 200 + "'",
        "best = " + "dict(" * 90 + "m.state_dict()" + ")" * 90,
        "a = " + "b = " * 5_000 + "m.state_dict()",
    ],
    ids=range(14),
)
def test_deep_nesting_ends_with_an_answer(text: str, tmp_path: Path) -> None:
    """In a process of its own: a stack that overflows in C would take the test with it."""
    file = tmp_path / "deep.py"
    file.write_text(text + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "holdfast", "lint", str(file)]
    path = str(Path(holdfast.__file__).parents[1])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": path}, preexec_fn=bounded
    )
    assert done.returncode in (0, 1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1


def bounded() -> None:
    """Two gigabytes of address space: an answer needs less."""
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))


def test_a_script_that_is_too_deep_is_said_to_be(found: Found) -> None:
    with pytest.raises(RefusedFile, match="`: is nested too deep to be read"):
        found("-" * 200_000 + "1")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.py"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(RefusedFile, match="has more than 1,048,576 bytes, and no script has"):
        lint(str(file))
    file.write_text("#" * MOST_CODE)
    assert lint(str(file)).findings == ()


def test_many_findings_take_linear_time(found: Found) -> None:
    """5,000 lines that are all wrong: a rule that looks at everything for each line would need minutes."""
    lines = "".join(f"best_{i} = model_{i}.state_dict().copy()\n" for i in range(5_000))
    assert len(found(lines)) == 5_000
    saves = "for epoch in range(3):\n" + "    torch.save(model, 'a/b.pt')\n" * 1_000
    assert len(found(saves)) == 3_000
    scripts = sorted((Path(__file__).parent / "scripts").glob("*.py"))
    text = "".join(script.read_text(encoding="utf-8").replace("from __future__", "from f") for script in scripts)
    assert len(found(text * 20)) > 500


def test_a_script_that_loads_in_thousands_of_places_is_refused(found: Found) -> None:
    assert len(found("# cuda\n" + "x = torch.load(f)\nx.eval()\n" * 1_000)) == 1_000
    with pytest.raises(RefusedFile, match="saves and loads in 3,000 places, and no script does in more than 2,000"):
        found("x = torch.load(f)\nx.eval()\n" * 3_000)


def test_what_is_not_there_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        lint(str(tmp_path / "gone.py"))
    with pytest.raises(StorageError, match="is no regular file"):
        lint("/dev/zero")
    with pytest.raises(StorageError, match="can't be read"):
        lint("a\0b.py")


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b'{"cells": 3}', b'{"cells": [3]}', b"[" * 100_000, b'{"cells": [{"cell_type": "code"}]}'],
)
def test_what_is_no_notebook(text: bytes, found: Found) -> None:
    with pytest.raises(UnknownFormat, match="is no notebook"):
        found(text, "notes.ipynb")


def test_a_notebook_that_is_no_python_names_the_cell(found: Found) -> None:
    cells = b'{"cells": [{"cell_type": "code", "source": "x = 1"}, {"cell_type": "code", "source": ["a\\n", "b c"]}]}'
    with pytest.raises(UnknownFormat, match=r"notes\.ipynb:cell 2:2`: is no Python"):
        found(cells, "notes.ipynb")
    assert found(b'{"cells": []}', "notes.ipynb") == ()


def test_names_from_a_script_are_printed_without_escapes(found: Found) -> None:
    (one,) = found("best = model['\\x1b[2J\x1b'].state_dict()\n")
    assert "\x1b" in one.what  # as it stands in the script; the command line escapes it


PIECES = st.sampled_from(
    [
        *(
            "torch.save(",
            "model",
            ".state_dict()",
            ", 'a.pt')",
            "best = ",
            "for e in x:\n",
            "    ",
            "\n",
            "{",
            "}",
            ":",
        ),
        *(
            "(",
            ")",
            "[",
            "]",
            "**",
            "*",
            "lambda: ",
            "load_state_dict(",
            "strict=False",
            "torch.load(",
            "if ",
            "try:\n",
        ),
        *("except:\n", "del ", "k.replace('module.', '')", "for k, v in ", ".items()", "=", "+ 1", "'epoch'", "range("),
        *("class A:\n", "def f(", "async ", "await ", "match x:\n", "case ", "@", ":=", "f'{x}'", "\\", "'''", "#"),
        *("é", "\t", "\r", "\x0c", "return "),
    ]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES, max_size=25).map("".join))
def test_any_text_ends_with_findings_or_an_error_of_ours(found: Found, text: str) -> None:
    with contextlib.suppress(UnknownFormat, RefusedFile):
        assert all(one.line >= 1 for one in found(text))
