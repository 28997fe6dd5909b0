"""What a build takes from the caller's host: proxies of Docker's configuration, certificate authorities."""

from __future__ import annotations

from pathlib import Path

import pytest

from firebuild.engine.proxies import load_proxy_args
from firebuild.errors import ConfigError, HostError
from firebuild.host.trust import MAX_BUNDLE_BYTES, load_ca_bundle

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def configure(folder: Path, text: str) -> dict[str, str]:
    (folder / "config.json").write_text(text)
    return {"DOCKER_CONFIG": str(folder)}


def test_proxies_are_those_of_docker_s_configuration(tmp_path: Path) -> None:
    text = '{"auths": {}, "proxies": {"default": {"httpProxy": "http://p:1", "noProxy": "a,b", "ftpProxy": ""}}}'
    assert load_proxy_args(configure(tmp_path, text)) == {"HTTP_PROXY": "http://p:1", "NO_PROXY": "a,b"}


@pytest.mark.parametrize("text", ["{}", '{"proxies": null}', '{"proxies": {"tcp://other": {"httpProxy": "x"}}}'])
def test_there_may_be_none(tmp_path: Path, text: str) -> None:
    assert load_proxy_args(configure(tmp_path, text)) == {}
    assert load_proxy_args({"HOME": str(tmp_path)}) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"proxies": {"default": ["x"]}}'])
def test_a_configuration_that_is_damaged(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_proxy_args(configure(tmp_path, text))


def test_of_a_bundle_only_the_certificates_are_taken(tmp_path: Path) -> None:
    bundle = tmp_path / "all.pem"
    bundle.write_text(
        f"# a comment\n{CERTIFICATE}-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n{CERTIFICATE}"
    )
    assert load_ca_bundle({"SSL_CERT_FILE": str(bundle)}) == 2 * CERTIFICATE


@pytest.mark.parametrize(
    ("text", "word"), [("nothing", "no certificate"), (CERTIFICATE * (MAX_BUNDLE_BYTES // 50), "bytes")]
)
def test_a_bundle_that_cannot_be_used(tmp_path: Path, text: str, word: str) -> None:
    bundle = tmp_path / "all.pem"
    bundle.write_text(text)
    with pytest.raises(HostError, match=word):
        load_ca_bundle({"SSL_CERT_FILE": str(bundle)})
    bundle.unlink()
    with pytest.raises(HostError, match=r"all\.pem"):
        load_ca_bundle({"SSL_CERT_FILE": str(bundle)})
