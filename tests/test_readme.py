"""The README's Python blocks run as they stand."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_python_block_of_the_readme_runs(block: str) -> None:
    lines = block.rstrip().splitlines()
    shape = re.search(r"\.shape  # (\(.*?\))", lines[-1])
    assert shape, "the last line shows a shape"
    names: dict[str, object] = {}
    exec("\n".join(lines[:-1]), names)
    assert eval(lines[-1], names) == eval(shape[1])


def test_the_readme_has_python_blocks() -> None:
    assert BLOCKS
