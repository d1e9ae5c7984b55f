"""Weights by address, from a server of this process."""

import hashlib
import io

import pytest
import torch
from safetensors.torch import save
from tiny import network, snapshot, unchanged

from lightning_biaskd import UserError, load_weights


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "hub" / "checkpoints"


def pickled(model):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("name", "serialised"), [("net.pt", pickled), ("net.safetensors", lambda m: save(m.state_dict()))]
)
def test_a_file_is_fetched_once_and_kept(server, cache, name, serialised):
    source = network()
    content = server.files[f"/models/{name}"] = serialised(source)
    digest = sha256(content)
    for _ in range(2):
        target = network()
        load_weights(target, f"{server.address}/models/{name}#sha256={digest.upper()}")
        assert unchanged(snapshot(source), target)
    assert len(server.asked) == 1
    stem, suffix = name.split(".")
    assert [path.name for path in cache.iterdir()] == [f"{stem}-{digest[:8]}.{suffix}"]


def test_what_torch_hub_fetched_before_is_taken(server, cache):
    source, target = network(), network()
    content = pickled(source)
    name = f"net-{sha256(content)[:8]}.pth"  # as torchvision names its own
    cache.mkdir(parents=True)
    (cache / name).write_bytes(content)
    load_weights(target, f"{server.address}/{name}#sha256={sha256(content)}")
    assert unchanged(snapshot(source), target)
    assert not server.asked


def test_a_damaged_copy_is_fetched_anew(server, cache):
    content = server.files["/net.pt"] = pickled(network())
    load_weights(network(), f"{server.address}/net.pt#sha256={sha256(content)}")
    (copy,) = cache.iterdir()
    copy.write_bytes(content[:-1])
    load_weights(network(), f"{server.address}/net.pt#sha256={sha256(content)}")
    assert len(server.asked) == 2
    assert copy.read_bytes() == content


def test_a_file_of_the_hub_by_name_and_revision(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.address + "/")
    monkeypatch.setenv("HF_TOKEN", "secret")
    source, target = network(), network()
    content = server.files["/elsewhere"] = pickled(source)
    server.files["/me/nets/resolve/main/last.ckpt"] = server.address + "/elsewhere"
    server.files["/me/nets/resolve/refs%2Fpr%2F1/sub/a%20b.pt"] = content
    load_weights(target, f"hf://me/nets/last.ckpt#sha256={sha256(content)}")
    assert unchanged(snapshot(source), target)
    load_weights(network(), f"hf://me/nets/sub/a b.pt@refs/pr/1#sha256={sha256(content)}")
    asked = dict(server.asked)
    assert asked["/me/nets/resolve/refs%2Fpr%2F1/sub/a%20b.pt"] == "Bearer secret"
    assert asked["/elsewhere"] is None  # the token is the hub's alone


class Trap:
    def __reduce__(self):
        return print, ("code ran",)


def test_nothing_is_opened_whose_digest_is_another(server, cache, monkeypatch):
    buffer = io.BytesIO()
    torch.save(Trap(), buffer)
    server.files["/net.pt"] = buffer.getvalue()
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UserError, match=f"has the sha256 {sha256(buffer.getvalue())}, not {'0' * 64}"):
        load_weights(network(), f"{server.address}/net.pt#sha256={'0' * 64}")
    assert not list(cache.iterdir())


def test_a_transfer_that_breaks_off_is_one_line_and_leaves_nothing(server, cache):
    content = server.files["/net.pt"] = pickled(network())
    server.limit = 100
    with pytest.raises(UserError, match=f"broke off after 100 of {len(content)} bytes: try again") as error:
        load_weights(network(), f"{server.address}/net.pt#sha256={sha256(content)}")
    assert "\n" not in str(error.value)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("source", ["{address}/none.pt", "http://127.0.0.1:9/net.pt", "https:///net.pt"])
def test_what_can_not_be_fetched_is_one_line(server, cache, source):
    with pytest.raises(UserError, match="could not be fetched .*check the address and the network"):
        load_weights(network(), source.format(address=server.address) + f"#sha256={'0' * 64}")
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("https://host/net.pt", "names no digest"),
        ("https://host/net.pt#sha256=123", "names no digest"),
        ("hf://me/nets/net.pt#md5=" + "0" * 32, "names no digest"),
        ("ftp://host/net.pt#sha256=" + "0" * 64, "can't fetch"),
        ("hf://net.pt#sha256=" + "0" * 64, "can't fetch"),
    ],
)
def test_a_source_of_another_form_is_one_line(source, says):
    with pytest.raises(UserError, match=says):
        load_weights(network(), source)
