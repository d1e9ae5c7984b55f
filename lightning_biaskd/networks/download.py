"""Files by address: verified by their digest before anything reads them, and kept in torch.hub's cache."""

from __future__ import annotations

import hashlib
import os
import re
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_biaskd.errors import UserError
from lightning_biaskd.files import atomic_write, sha256

_TIMEOUT = 30.0
_CHUNK = 1 << 20


def fetch(source: str) -> Path:
    """The local copy of a remote file, fetched unless it is in the cache already.

    The cache is that of torch.hub (``$TORCH_HOME/hub/checkpoints``), with torch.hub's habit of ending names in the
    first eight digits of the digest. A copy appears there whole and verified or not at all; processes that start at
    the same time each fetch their own.

    Args:
        source: ``https://HOST/FILE#sha256=HEX``, or ``hf://OWNER/REPOSITORY/FILE[@REVISION]#sha256=HEX`` for a file of
            the Hugging Face hub. As the hub's own library does, this honours ``HF_ENDPOINT`` and ``HF_TOKEN``.

    Returns:
        The path of the copy.

    Raises:
        UserError: a source without a digest or of another form, a file that can't be fetched or has another digest.
    """
    address, _, fragment = source.partition("#")
    digest = fragment.removeprefix("sha256=").lower()
    if not fragment.startswith("sha256=") or not re.fullmatch("[0-9a-f]{64}", digest):
        raise UserError(
            f"{source!r} names no digest: append #sha256= and the 64 digits that sha256sum gives for a copy you trust"
        )
    request = _request(address)
    name = Path(urlsplit(request.full_url).path)
    if digest[:8] not in name.stem:
        name = name.with_name(f"{name.stem}-{digest[:8]}{name.suffix}")
    path = Path(torch.hub.get_dir(), "checkpoints", name.name)
    if not path.is_file() or sha256(path) != digest:
        rank_zero_info(f"fetching {request.full_url} to {path}")
        _download(request, path, digest)
    return path


def _request(address: str) -> Request:
    if address.startswith(("https://", "http://")):
        return Request(address)
    form = re.fullmatch(r"hf://([^/@]+/[^/@]+)/([^@]+)(?:@(.+))?", address)
    if form is None:
        raise UserError(f"can't fetch {address!r}: write https://HOST/FILE or hf://OWNER/REPOSITORY/FILE[@REVISION]")
    repository, file, revision = form.groups(default="main")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = Request(f"{endpoint}/{repository}/resolve/{quote(revision, safe='')}/{quote(file)}")
    if token := os.environ.get("HF_TOKEN"):  # unredirected: the hub sends on to hosts that it is not meant for
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return request


def _download(request: Request, path: Path, digest: str) -> None:
    url = request.full_url
    hasher, received = hashlib.sha256(), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urlopen(request, timeout=_TIMEOUT) as response, atomic_write(path) as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                hasher.update(chunk)
                received += len(chunk)
            promised = response.headers.get("Content-Length") or ""
            if promised.isdecimal() and received != int(promised):
                raise UserError(f"{url} broke off after {received} of {promised} bytes: try again")
            if hasher.hexdigest() != digest:
                raise UserError(
                    f"{url} has the sha256 {hasher.hexdigest()}, not {digest}, and was not opened: the file there is "
                    "another one, or the digest is mistyped"
                )
    except UserError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise UserError(f"{url} could not be fetched ({error}): check the address and the network") from None
