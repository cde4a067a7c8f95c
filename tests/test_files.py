"""Files appear whole or not at all, whatever happens while they are written."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from genpipe.files import atomic_write, cache_folder, sweep, write_safetensors
from genpipe.images import open_image
from genpipe.request import Request

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX modes and signals")
# By default, and with a place of its own for what is half-written.
PARTS = [None, "parts"]


@pytest.fixture
def path(tmp_path) -> Path:
    """A file that says "old", alone in its folder."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "here").mkdir()
    path = tmp_path / "here" / "a.txt"
    path.write_text("old")
    return path


def part_of(path: Path, folder: str | None) -> Path | None:
    return None if folder is None else path.parents[1] / folder / path.name


def nothing_else(path: Path) -> bool:
    return [found for found in path.parents[1].rglob("*") if found.is_file()] == [path]


@pytest.mark.parametrize("folder", PARTS)
def test_the_old_file_is_there_until_the_new_one_is_whole(path, folder):
    with atomic_write(path, part=part_of(path, folder)) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and nothing_else(path)


@pytest.mark.parametrize("folder", PARTS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), OSError(28, "No space left on device")])
def test_a_failure_in_the_middle_leaves_the_old_file_alone(path, folder, error):
    with (
        pytest.raises(type(error)),
        atomic_write(path, part=part_of(path, folder)) as part,
        part.open("w") as file,
    ):
        file.write("ne")
        file.flush()
        raise error
    assert path.read_text() == "old" and nothing_else(path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_is_full_only_at_the_end_is_named_by_the_files_own_name(path, monkeypatch, step):
    def full(*_):
        raise OSError(28, "No space left on device", "/some/temporary/name")

    monkeypatch.setattr(os, step, full)
    with (
        pytest.raises(OSError, match=rf"No space left on device: '{path}'$"),
        atomic_write(path, durable=True) as part,
    ):
        part.write_text("new")
    assert path.read_text() == "old" and nothing_else(path)


def test_an_error_without_a_number_keeps_its_words(path):
    with pytest.raises(OSError, match=rf"encoder error -2: '{path}'$"), atomic_write(path):
        raise OSError("encoder error -2")


def test_a_folder_that_is_missing_or_a_file_is_named_by_the_files_own_name(path):
    for wrong, kind in ((path.parent / "no" / "b.txt", FileNotFoundError), (path / "b.txt", NotADirectoryError)):
        with pytest.raises(kind, match=rf"'{wrong}'$"), atomic_write(wrong):
            pytest.fail("there is nothing to write to")
    assert nothing_else(path)


def test_writers_of_one_file_do_not_meet(path):
    with atomic_write(path) as first:
        with atomic_write(path) as second:
            first.write_text("first")
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first" and nothing_else(path)


def test_readers_never_see_a_mixture_of_writers(path):
    texts = [character * 50_000 for character in "abcdef"]

    def write(text: str) -> None:
        for _ in range(10):
            with atomic_write(path) as part:
                part.write_text(text)

    seen = set()
    with ThreadPoolExecutor(len(texts)) as pool:
        writers = [pool.submit(write, text) for text in texts]
        while not all(writer.done() for writer in writers):
            seen.add(path.read_text())
    for writer in writers:
        writer.result()
    assert seen <= {"old", *texts} and path.read_text() in texts and nothing_else(path)


@posix
@pytest.mark.parametrize("private", [False, True])
def test_files_get_the_usual_mode_however_they_are_written(path, private):
    before = os.umask(0o027)
    try:
        with atomic_write(path) as part:
            if private:  # as safetensors does it
                part.unlink()
                os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
            part.write_text("new")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def write_and_be_killed(path: Path, arguments: str) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from genpipe.files import atomic_write\n"
        f"with atomic_write(Path(sys.argv[1]), {arguments}) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL


@posix
@pytest.mark.parametrize("replace", [True, False])
def test_what_a_killed_writer_left_is_swept_and_what_others_write_is_not(path, replace):
    write_and_be_killed(path if replace else path.with_name("b.txt"), f"replace={replace}")
    left = [found for found in path.parent.iterdir() if found != path]
    assert [found.read_text() for found in left] == ["half"] and path.read_text() == "old"
    elsewhere = left[0].with_name(left[0].name.replace(left[0].name[9:17], "00000000"))
    elsewhere.touch()  # of another machine, perhaps still at work
    with atomic_write(path) as part:
        sweep(path.parent)
        assert part.exists() and elsewhere.exists() and not left[0].exists()
    os.utime(elsewhere, (0, 0))
    (path.parent / ".genpipe-mine.part").touch()
    sweep(path.parent)
    assert sorted(found.name for found in path.parent.iterdir()) == [".genpipe-mine.part", "a.txt"]
    sweep(path.parent / "missing")


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_is_taken_is_never_written_over(path, monkeypatch, links):
    if not links:

        def refuse(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    new = path.with_name("b.txt")
    with atomic_write(new, replace=False) as part:
        part.write_text("new")
        assert not new.exists()
    with pytest.raises(FileExistsError, match=rf"'{new}'$"), atomic_write(new, replace=False) as part:
        part.write_text("newer")
    (path.parent / "link.txt").symlink_to("nowhere")
    with pytest.raises(FileExistsError), atomic_write(path.parent / "link.txt", replace=False):
        pass
    assert new.read_text() == "new" and sorted(os.listdir(path.parent)) == ["a.txt", "b.txt", "link.txt"]


def test_one_of_many_that_want_a_name_gets_it(path):
    def take(text: str) -> bool:
        try:
            with atomic_write(path.with_name("b.txt"), replace=False) as part:
                part.write_text(text)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, "abcdefgh")) == 1
    assert sorted(os.listdir(path.parent)) == ["a.txt", "b.txt"]


@posix
def test_what_a_killed_writer_left_is_overwritten_where_the_name_is_fixed(path):
    part = path.with_name("a.part")
    write_and_be_killed(path, f"part=Path({str(part)!r})")
    assert (path.read_text(), part.read_text()) == ("old", "half")
    with atomic_write(path, part=part):
        assert part.read_text() == ""
        part.write_text("new")
    assert path.read_text() == "new" and nothing_else(path)


@posix
@pytest.mark.parametrize(("folder", "kept"), [(None, True), ("parts", False)])
def test_a_link_is_followed_unless_the_part_has_its_own_place(path, folder, kept):
    link = path.with_name("link.txt")
    link.symlink_to(path)
    with atomic_write(link, part=part_of(link, folder)) as part:
        part.write_text("new")
    assert link.is_symlink() is kept
    assert (link.read_text(), path.read_text()) == ("new", "new" if kept else "old")


@pytest.mark.parametrize(("durable", "calls"), [(True, ["fsync 3", "replace"]), (False, ["replace"])])
def test_only_what_is_to_be_durable_waits_for_the_disk(path, monkeypatch, durable, calls):
    made, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: made.append(f"fsync {os.fstat(file).st_size}") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: made.append("replace") or replace(*paths))
    with atomic_write(path, durable=durable) as part:
        part.write_text("new")
    assert made == calls


@posix
def test_tensors_that_do_not_fit_the_disk_are_an_error_of_the_system(path):
    import resource  # of POSIX alone

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk
    try:
        with pytest.raises(OSError, match=re.escape(str(path))):
            write_safetensors(path, {"x": torch.zeros(1000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["\0", "a\0.png", "\ud800"])
def test_what_cannot_name_a_file_is_refused_in_one_line(name: str) -> None:
    says = "cannot be a file's name"
    with pytest.raises(ValueError, match=says):
        open_image(name)
    for setting in ("image", "mask"):
        with pytest.raises(ValueError, match=says):
            Request.check_settings({setting: name})
    with pytest.raises(ValueError, match=says):
        Request.check_settings({"loras": [name]})


def test_what_can_be_found_out_again_is_kept_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/genpipe")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "genpipe"
