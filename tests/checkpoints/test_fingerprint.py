"""A model's fingerprint is its files' bytes."""

import hashlib
import json
import os

from genpipe.checkpoints.fingerprint import checkpoint_files, data_sha256, file_sha256, fingerprint


def test_a_fingerprint_is_of_names_and_bytes_alone(tmp_path):
    cache = tmp_path / "cache.json"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w").write_bytes(b"weights")
    first = fingerprint([("unet/w", tmp_path / "one" / "w")], cache)
    assert first == fingerprint([("unet/w", tmp_path / "two" / "w")], cache)
    assert first != fingerprint([("vae/w", tmp_path / "two" / "w")], cache)
    (tmp_path / "two" / "w").write_bytes(b"weightz")
    assert first != fingerprint([("unet/w", tmp_path / "two" / "w")], cache)


def test_a_file_is_hashed_again_only_when_size_or_time_change(tmp_path):
    cache, file = tmp_path / "deep" / "cache.json", tmp_path / "w"
    file.write_bytes(b"weights")
    os.utime(file, ns=(1, 1))
    first = fingerprint([("w", file)], cache)
    (key,) = json.loads(cache.read_text())
    assert str(file) in key
    file.write_bytes(b"changed")
    os.utime(file, ns=(1, 1))
    assert fingerprint([("w", file)], cache) == first
    os.utime(file, ns=(2, 2))
    assert fingerprint([("w", file)], cache) != first


def test_a_damaged_cache_is_no_harm(tmp_path):
    cache, file = tmp_path / "cache.json", tmp_path / "w"
    file.write_bytes(b"weights")
    first = fingerprint([("w", file)], cache)
    cache.write_text("{")
    assert fingerprint([("w", file)], cache) == first
    assert json.loads(cache.read_text())


def test_a_single_file_is_known_by_its_bytes_alone(tmp_path):
    for name, content in (("a.safetensors", b"1"), ("b.safetensors", b"1"), ("c.safetensors", b"2")):
        (tmp_path / name).write_bytes(content)
    first, same, other = (
        fingerprint(checkpoint_files(tmp_path / f"{name}.safetensors", None), tmp_path / "cache.json") for name in "abc"
    )
    assert first == same != other


def test_hashes_are_those_of_a1111(tmp_path):
    header = b'{"__metadata__": {"a": "b"}}    '
    (tmp_path / "lora.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"data")
    assert data_sha256(tmp_path / "lora.safetensors") == hashlib.sha256(b"data").hexdigest()
    whole = hashlib.sha256((tmp_path / "lora.safetensors").read_bytes()).hexdigest()
    for _ in range(2):
        assert file_sha256(tmp_path / "lora.safetensors", tmp_path / "cache.json") == whole
    assert list(json.loads((tmp_path / "cache.json").read_text()).values()) == [whole]


def test_parts_given_beside_a_model_count_by_their_bytes(tmp_path):
    for name in ("model.safetensors", "a.safetensors", "folder/vae/b.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    def of(**parts):
        return fingerprint(checkpoint_files(tmp_path / "model.safetensors", None, parts=parts), tmp_path / "cache.json")

    plain, file, folder = of(vae=None), of(vae=str(tmp_path / "a.safetensors")), of(vae=str(tmp_path / "folder"))
    both = of(text_encoder=f"{tmp_path / 'a.safetensors'},{tmp_path / 'folder' / 'vae'}")
    assert len({plain, file, folder, both}) == 4 and plain == of()
    (tmp_path / "folder" / "vae" / "b.safetensors").write_bytes(b"changed")
    assert of(vae=str(tmp_path / "folder")) != folder and of(vae=str(tmp_path / "a.safetensors")) == file
