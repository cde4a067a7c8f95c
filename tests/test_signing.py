"""Signed files, verified by C2PA's own reader."""

import datetime
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genpipe.cli import main
from genpipe.images import FORMATS, encode_image, save_image
from genpipe.metadata import annotate, read_request
from genpipe.render import render
from genpipe.request import Request
from genpipe.signing import Signer

c2pa: Any = pytest.importorskip("c2pa")
x509: Any = pytest.importorskip("cryptography.x509")
TRAINED, COMPOSITE = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def certificate(subject: str, issuer: str, key: Any, signed_by: Any, *, ca: bool, usage: bool = True) -> Any:
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(text: str) -> Any:
        both = ((NameOID.COMMON_NAME, text), (NameOID.ORGANIZATION_NAME, "Example"))
        return x509.Name([x509.NameAttribute(*each) for each in both])

    now = datetime.datetime.now(datetime.UTC)
    digest = None if "25519" in type(signed_by).__name__ else hashes.SHA256()
    uses = {"digital_signature": True, "key_cert_sign": ca, "crl_sign": ca}
    others = (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    )
    made = (
        x509.CertificateBuilder(name(issuer), name(subject), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**uses, **dict.fromkeys(others, False)), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signed_by.public_key()), critical=False)
    )
    if not ca and usage:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return made.sign(signed_by, digest)


def new_key(kind: str = "P-256") -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if kind == "RSA":
        return rsa.generate_private_key(65537, 2048)
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key({"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "K-256": ec.SECP256K1}[kind]())


def pem(*parts: Any, password: bytes | None = None) -> bytes:
    from cryptography.hazmat.primitives import serialization

    found = b""
    for part in parts:
        if hasattr(part, "private_bytes"):
            none = serialization.NoEncryption()
            lock = none if password is None else serialization.BestAvailableEncryption(password)
            found += part.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
        else:
            found += part.public_bytes(serialization.Encoding.PEM)
    return found


class Identity:
    """A signer's file, and the certificate that a reader trusts."""

    def __init__(self, folder: Path, kind: str = "P-256") -> None:
        self.root_key, self.key = new_key(), new_key(kind)
        self.root = certificate("root", "root", self.root_key, self.root_key, ca=True)
        self.own = certificate("signer", "root", self.key, self.root_key, ca=False)
        self.path = folder / f"{kind}.pem"
        self.path.write_bytes(pem(self.own, self.root, self.key))


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture
def verified(identity: Identity) -> Callable[..., tuple[str, dict[str, Any]]]:
    """Read a file by C2PA's reader: the state of its signature, and the manifest."""

    def read(data: bytes | Path, suffix: str = ".png", root: Any = None) -> tuple[str, dict[str, Any]]:
        data = data.read_bytes() if isinstance(data, Path) else data
        trusted = pem(root or identity.root).decode()
        context = c2pa.Context.from_dict({"trust": {"trust_anchors": trusted}, "verify": {"verify_trust": True}})
        found = json.loads(c2pa.Reader(KINDS[suffix], io.BytesIO(data), context=context).json())
        return found["validation_state"], found["manifests"][found["active_manifest"]]

    return read


def made(**settings: Any) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    request = Request("a cat", seed=7, steps=3, guidance_scale=4, height=32, width=32, **settings)
    annotate(image, request, {"model": "embedded", "dtype": "float32"})
    return image


def actions(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    (found,) = (one["data"]["actions"] for one in manifest["assertions"] if one["label"].startswith("c2pa.actions"))
    return found


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_kind_of_file_is_signed_and_its_pixels_and_texts_are_untouched(
    identity: Identity, verified: Any, suffix: str
) -> None:
    image = made()
    plain, signed = encode_image(image, suffix), encode_image(image, suffix, sign=Signer(identity.path))
    state, manifest = verified(signed, suffix)
    assert state == "Trusted" and manifest["signature_info"]["common_name"] == "signer"
    (action,) = actions(manifest)
    assert action["action"] == "c2pa.created" and action["digitalSourceType"].endswith(f"/{TRAINED}")
    assert manifest["claim_generator_info"][0]["name"] == "genpipe"
    one, other = (Image.open(io.BytesIO(data)) for data in (plain, signed))
    assert one.tobytes() == other.tobytes() and read_request(other) == read_request(one)


@pytest.mark.parametrize("kind", ["P-384", "RSA", "Ed25519"])
def test_keys_of_every_kind_that_c2pa_takes(tmp_path: Path, verified: Any, kind: str) -> None:
    identity = Identity(tmp_path, kind)
    state, _ = verified(encode_image(made(), ".png", sign=Signer(identity.path)), root=identity.root)
    assert state == "Trusted"


def test_a_file_that_was_changed_or_is_anothers_is_found_out(identity: Identity, verified: Any, tmp_path: Path) -> None:
    data = bytearray(encode_image(made(), ".png", sign=Signer(identity.path)))
    data[-20] ^= 1
    assert verified(bytes(data))[0] == "Invalid"
    other = Identity(tmp_path)
    assert verified(encode_image(made(), ".png", sign=Signer(other.path)))[0] == "Valid"  # and not trusted


def test_what_an_edit_was_made_of_is_its_ingredient(identity: Identity, verified: Any, tmp_path: Path) -> None:
    save_image(made(), tmp_path / "first.png", sign=Signer(identity.path))
    edited = made(image=tmp_path / "first.png")
    state, manifest = verified(encode_image(edited, ".jpg", sign=Signer(identity.path)), ".jpg")
    opened, done = actions(manifest)
    assert state == "Trusted" and (opened["action"], done["action"]) == ("c2pa.opened", "c2pa.edited")
    assert done["digitalSourceType"].endswith(f"/{COMPOSITE}")
    (ingredient,) = manifest["ingredients"]
    assert (ingredient["title"], ingredient["relationship"]) == ("first.png", "parentOf")
    assert "active_manifest" in ingredient  # what was signed of it goes along
    (tmp_path / "first.png").unlink()
    state, manifest = verified(encode_image(edited, ".jpg", sign=Signer(identity.path)), ".jpg")
    assert state == "Trusted" and [one["action"] for one in actions(manifest)] == ["c2pa.created"]


def test_the_command_signs_what_it_saves(
    identity: Identity, verified: Any, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["a cat", "-n", "2", "--seed", "3", "--steps", "1", "--model", str(tiny_checkpoint), "--device", "cpu"]
    assert main([*given, "--outdir", str(tmp_path), "--sign", str(identity.path), "--grid"]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in paths] == ["a-cat.png", "a-cat-2.png", "a-cat-grid.png"]
    assert {verified(path)[0] for path in paths} == {"Trusted"}


def test_rendering_signs_too(identity: Identity, verified: Any, tmp_path: Path, tiny_checkpoint: Path) -> None:
    given: Any = {"model": tiny_checkpoint, "steps": 1, "sign": str(identity.path)}
    drawn = list(render(["a cat", "a dog"], out=tmp_path / "out", devices="cpu", **given))
    paths = sorted((tmp_path / "out").rglob("*.png"))
    assert len(drawn) == len(paths) == 2 and {verified(path)[0] for path in paths} == {"Trusted"}
    key = pem(identity.key).split(b"\n")[1]
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or key not in path.read_bytes()


def broken(folder: Path) -> dict[str, bytes]:
    identity = Identity(folder)
    other = Identity(folder, "P-384")
    odd_key = new_key("K-256")
    odd = certificate("odd", "root", odd_key, identity.root_key, ca=False)
    return {
        "empty": b"",
        "text": b"no PEM",
        "no key": pem(identity.own),
        "no certificate": pem(identity.key),
        "encrypted": pem(identity.own, identity.root) + pem(identity.key, password=b"x"),
        "another's key": pem(identity.own, other.key),
        "an odd curve": pem(odd, odd_key),
        "cut": pem(identity.own, identity.key)[:-200],
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("empty", "must hold certificates and a private key"),
        ("text", "must hold certificates and a private key"),
        ("no key", "it has no private key"),
        ("no certificate", "must hold certificates"),
        ("encrypted", "must hold certificates and a private key, not encrypted"),
        ("another's key", "its first certificate is not that of its private key"),
        ("an odd curve", "its key is of a kind that C2PA does not take"),
        ("cut", "must hold certificates and a private key"),
    ],
)
def test_a_file_that_cannot_sign_is_refused_in_one_line(tmp_path: Path, name: str, says: str) -> None:
    path = tmp_path / "x.pem"
    path.write_bytes(broken(tmp_path)[name])
    with pytest.raises(ValueError, match=says) as caught:
        Signer(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_certificate_that_is_not_for_signing_is_told(tmp_path: Path, identity: Identity) -> None:
    key = new_key()
    own = certificate("signer", "root", key, identity.root_key, ca=False, usage=False)
    (tmp_path / "x.pem").write_bytes(pem(own, identity.root, key))
    with pytest.raises(ValueError, match="the image cannot be signed: ") as caught:
        encode_image(made(), ".png", sign=Signer(tmp_path / "x.pem"))
    assert "\n" not in str(caught.value)
