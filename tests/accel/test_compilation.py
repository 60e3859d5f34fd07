"""Networks are compiled where that works."""

import sys

import pytest
import torch

from tesserae.accel.compilation import compiles
from tesserae.errors import TesseraeError


def test_networks_are_compiled_where_a_compiler_works(monkeypatch):
    """auto: on a GPU. It is tried before anything is trained, and what comes of it is one sentence."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    said = []
    assert compiles("auto", gpu, said.append)
    assert compiles("on", cpu, said.append)
    complains = f"{sys.executable} -c 'import sys; sys.exit(\"error: no headers\")'"
    for compiler in ("no-such-compiler", "false", complains):
        monkeypatch.setenv("CXX", compiler)
        assert not said
        assert not compiles("auto", gpu, said.append)
        sentence = said.pop()
        assert sentence.startswith("Networks stay uncompiled")
        assert compiler.split()[0] in sentence
        assert "\n" not in sentence
        with pytest.raises(TesseraeError, match=r"^compile: on needs a C\+\+ compiler, and [^\n]*$"):
            compiles("on", cpu, said.append)
        assert not compiles("off", gpu, said.append)
        assert not compiles("auto", cpu, said.append)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert not compiles("auto", gpu, said.append)
    assert len(said) == 1
