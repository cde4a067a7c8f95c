"""Files that are signed: a C2PA manifest ("Content Credentials") says who made an image, how, and out of which other.

It needs the package c2pa-python. Pixels are not touched; readers such as verify.contentauthenticity.org show what was signed.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import genpipe
from genpipe.imprint import COMPOSITE, MADE, SOURCE, SOURCES
from genpipe.messages import one_line, quoted

_KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


class Signer:
    """Signs the bytes of image files.

    Args:
        path: a PEM file that holds the signer's certificate, those above it, and the signer's private key (EC, RSA or
            Ed25519), which is not encrypted.

    Raises:
        ValueError: c2pa-python is not installed, or the file is not such a one.
        OSError: it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import c2pa
            from cryptography import x509
            from cryptography.hazmat.primitives import serialization
        except ImportError:
            raise ValueError("signing needs the package c2pa-python: pip install 'genpipe[sign]'") from None
        data = Path(path).expanduser().read_bytes()
        try:
            certificates = x509.load_pem_x509_certificates(data)
            key = serialization.load_pem_private_key(_private_part(data), password=None)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{quoted(path)} must hold certificates and a private key, not encrypted, as PEM: {one_line(str(error), 100)}"
            ) from None
        if certificates[0].public_key() != key.public_key():
            raise ValueError(
                f"{quoted(path)}: its first certificate is not that of its private key; put that one first"
            )
        pem = serialization.Encoding.PEM
        unlocked = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        chain = b"".join(one.public_bytes(pem) for one in certificates)
        info = c2pa.C2paSignerInfo(_algorithm(key, path), chain, unlocked, None)
        self._c2pa: Any = c2pa
        self._lock = Lock()  # its library was not made for several threads
        self._signer = c2pa.Signer.from_info(info)
        self._context = c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}})

    def __call__(self, data: bytes, suffix: str, info: Mapping[Any, Any]) -> bytes:
        """Give a file's bytes with a signed manifest.

        Args:
            data: of the file.
            suffix: of its name, which says of what kind it is.
            info: `Image.info` of what was encoded. The file that the image was made of, if it is still there, is named and
                identified as its ingredient.

        Raises:
            ValueError: it cannot be signed, as when the certificate is not for signing.
        """
        original = _original(info)
        source = f"{SOURCES}{info[SOURCE]}" if info.get(SOURCE) else None
        done: dict[str, Any] = {"action": "c2pa.edited" if original else "c2pa.created"}
        done |= {"digitalSourceType": source} if source else {}
        opened = [{"action": "c2pa.opened", "parameters": {"ingredientIds": ["original"]}}] if original else []
        manifest = {
            "claim_generator_info": [{"name": "genpipe", "version": genpipe.__version__}],
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [*opened, done]}}],
        }
        kind, result = _KINDS[suffix.lower()], io.BytesIO()
        try:
            with self._lock:
                builder = self._c2pa.Builder(manifest, self._context)
                if original is not None:
                    described = {"title": original.name, "relationship": "parentOf", "label": "original"}
                    with original.open("rb") as file:
                        builder.add_ingredient(described, _KINDS[original.suffix.lower()], file)
                builder.sign(self._signer, kind, io.BytesIO(data), result)
        except self._c2pa.C2paError as error:
            raise ValueError(f"the image cannot be signed: {one_line(str(error), 200)}") from None
        return result.getvalue()


def _private_part(data: bytes) -> bytes:
    start = data.find(b"-----BEGIN ", 0)
    while start >= 0:
        end = data.find(b"-----END ", start)
        stop = data.find(b"\n", end)
        part = data[start : len(data) if stop < 0 else stop + 1]
        if b"PRIVATE KEY" in part.split(b"\n", 1)[0]:
            return part
        start = data.find(b"-----BEGIN ", max(end, start + 1))
    raise ValueError("it has no private key")


def _algorithm(key: Any, path: str | Path) -> str:
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve in _ALGORITHMS:
        return _ALGORITHMS[curve]
    name = type(key).__name__
    if "RSA" in name:
        return "ps256"
    if "Ed25519" in name:
        return "ed25519"
    raise ValueError(f"{quoted(path)}: its key is of a kind that C2PA does not take: use EC (P-256), RSA or Ed25519")


def _original(info: Mapping[Any, Any]) -> Path | None:
    """The file that an image was made of, where it has one that C2PA knows how to read."""
    if info.get(SOURCE) != COMPOSITE or MADE not in info:
        return None
    image = json.loads(info[MADE]).get("image")
    path = Path(image["path"]) if isinstance(image, dict) and image.get("path") else None
    return path if path is not None and path.suffix.lower() in _KINDS and path.is_file() else None
