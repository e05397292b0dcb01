"""The fingerprint tells weights, recipes, defaults and engines apart, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from ortserve.gateway.schema.sampling import SamplingDefaults
from ortserve.gateway.served.fingerprint import installed_versions, system_fingerprint
from tests.gateway.scripted import make_manifest

VERSIONS = ("ortserve 1.0", "onnxruntime 1.32")


def test_it_changes_with_whatever_may_change_a_reply() -> None:
    manifest, defaults = make_manifest(10, eos=1), SamplingDefaults()
    plain = system_fingerprint(manifest, defaults, VERSIONS)
    others = [
        system_fingerprint(replace(manifest, digest="1" * 64), defaults, VERSIONS),
        system_fingerprint(replace(manifest, precision="int8"), defaults, VERSIONS),
        system_fingerprint(replace(manifest, exporter="another recipe"), defaults, VERSIONS),
        system_fingerprint(manifest, SamplingDefaults(temperature=0.5), VERSIONS),
        system_fingerprint(manifest, defaults, ("ortserve 1.0", "onnxruntime 1.33")),
        system_fingerprint(manifest, defaults, ("ortserve 1.1", "onnxruntime 1.32")),
    ]
    assert len({plain, *others}) == 7
    assert system_fingerprint(replace(manifest, name="another name"), defaults, VERSIONS) == plain


def test_the_engine_is_among_the_versions() -> None:
    names = [entry.split()[0] for entry in installed_versions()]
    assert names[0] == "ortserve"
    assert any(name.startswith("onnxruntime") for name in names[1:])
