"""The README's Python blocks run as they stand, and give the values in their comments.

A line `EXPRESSION  # VALUE` or `EXPRESSION  # VALUE: words` promises the Python literal VALUE.
"""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def promises(block: str) -> Iterator[tuple[int, str, str]]:
    """The lines that promise a value: number, expression, literal."""
    for number, line in enumerate(block.splitlines()):
        expression, _, comment = line.strip().partition("  # ")
        literal = next((text for text in (comment, comment.split(": ")[0]) if is_literal(text)), None)
        if literal is not None:
            ast.parse(expression, mode="eval")  # Nothing else can promise a value.
            yield number, expression, literal


def is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True


@pytest.fixture
def alone() -> Iterator[None]:
    """Each block starts its own process group, and leaves nothing behind."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("block", BLOCKS, ids=range(1, len(BLOCKS) + 1))
@pytest.mark.usefixtures("alone")
def test_a_python_block_of_the_readme_gives_the_values_that_it_shows(block: str) -> None:
    lines, shown = block.splitlines(), []
    for number, expression, literal in promises(block):
        indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
        lines[number] = f"{indent}shown.append(({expression}, {literal}, {expression!r}))"
    exec(compile("\n".join(lines), "README.md", "exec"), {"shown": shown})
    assert len(shown) == len(list(promises(block))) > 0
    for value, promised, expression in shown:
        assert value == promised, expression


def test_a_block_promises_what_its_comments_say() -> None:
    block = "x.shape  # (2, 2): two rows\nif x:\n    f(x)  # ['a']\n    g(x)  # as a word\ny = 3  # three: 4\n"
    assert list(promises(block)) == [(0, "x.shape", "(2, 2)"), (2, "f(x)", "['a']")]


def test_the_readme_has_python_blocks() -> None:
    assert len(BLOCKS) >= 5
