"""Files appear whole or not at all, here and by fsspec."""

import pytest

from genpipe.workers.storage import Folder, Remote, open_storage


def test_a_file_is_written_whole_with_its_folders(tmp_path):
    storage = open_storage(str(tmp_path))
    storage.write("a/b.png", b"one")
    storage.write("a/b.png", b"two")
    assert (storage.read("a/b.png"), storage.size("a/b.png"), storage.size("c")) == (b"two", 3, None)
    assert [path for path in (tmp_path / ".genpipe/parts").iterdir()] == []


def test_what_need_not_be_durable_is_written_in_its_place_and_never_through_a_link(tmp_path):
    storage = Folder(tmp_path)
    (tmp_path / "elsewhere").write_bytes(b"theirs")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a.jpg").symlink_to(tmp_path / "elsewhere")
    storage.write("small/a.jpg", b"one", durable=False)
    storage.write("small/a.jpg", b"two", durable=False)
    assert storage.read("small/a.jpg") == b"two" and (tmp_path / "elsewhere").read_bytes() == b"theirs"
    with pytest.raises(OSError, match="small"):
        storage.write("small", b"new", durable=False)
    with pytest.raises(FileNotFoundError, match="this folder is gone"):
        Folder(tmp_path / "out").write("small/a.jpg", b"x", durable=False)


def test_a_failed_write_keeps_what_was_there(tmp_path):
    storage = Folder(tmp_path)
    storage.write("a.png/b.png", b"old")
    with pytest.raises(OSError, match=r"a\.png"):
        storage.write("a.png", b"new")
    assert storage.read("a.png/b.png") == b"old" and not list((tmp_path / ".genpipe/parts").iterdir())


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    storage = Folder(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"this folder is gone: was it removed, or unmounted\?.*out'"):
        storage.write("images/a/b.png", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_folder_is_an_error_that_names_it(tmp_path):
    storage = Folder(tmp_path)
    storage.write("a", b"old")
    with pytest.raises(OSError, match="a"):
        storage.write("a/b.png", b"new")
    assert storage.read("a") == b"old"


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    storage = Folder(tmp_path)
    storage.write("a.png", b"x")
    (tmp_path / ".genpipe/parts/half").write_bytes(b"ha")
    storage.sweep()
    storage.write("b.png", b"y")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"a.png", "b.png"}


def test_storage_by_url():
    pytest.importorskip("fsspec")
    storage = open_storage("memory://renders")
    storage.write("images/a.png", b"abc")
    assert isinstance(storage, Remote)
    assert (storage.read("images/a.png"), storage.size("images/a.png"), storage.size("b")) == (b"abc", 3, None)


def test_errors_of_any_client_name_the_object():
    fsspec = pytest.importorskip("fsspec")

    class Broken(fsspec.AbstractFileSystem):
        protocol = "broken"

        def makedirs(self, path, exist_ok=False):
            raise RuntimeError("no\ncredentials")

        def info(self, path, **_):
            raise PermissionError("403")

        def cat_file(self, path, **_):
            raise KeyError("Body")

    fsspec.register_implementation("broken", Broken, clobber=True)
    storage = open_storage("broken://bucket")
    with pytest.raises(OSError, match=r"RuntimeError: no credentials.*bucket/a"):
        storage.write("a", b"x")
    with pytest.raises(OSError, match=r"403.*bucket/a"):
        storage.size("a")
    with pytest.raises(OSError, match=r"KeyError: 'Body'.*bucket/a"):
        storage.read("a")


def test_what_is_below_a_file_is_not_there(tmp_path):
    storage = Folder(tmp_path)
    storage.write("a", b"x")
    assert storage.size("a/b.png") is None


def test_an_unknown_url_is_refused():
    with pytest.raises(ValueError, match="storage nonsense://x cannot be used"):
        open_storage("nonsense://x")
