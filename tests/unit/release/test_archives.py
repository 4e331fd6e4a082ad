"""Bytes of packages: equal for equal contents, whatever order and times their files have."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from release.archives import compress, pack_directory, repack
from release.image import image_layout

TIME = 1_700_000_000


def archive_of(files: Sequence[tuple[str, bytes]], time: float) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files:
            found = tarfile.TarInfo(name)
            found.size, found.mtime, found.mode, found.uid = len(content), time, 0o4755, 65532
            archive.addfile(found, io.BytesIO(content))
    return buffer.getvalue()


def saved_image(path: Path, files: Sequence[tuple[str, bytes]], time: float, images: int = 1) -> Path:
    """Write an image as `docker save` does."""
    config = {
        "os": "linux",
        "architecture": "amd64",
        "created": str(time),
        "config": {"Cmd": ["python"], "User": "65532:65532", "Hostname": str(time), "Labels": None},
        "history": [{"created": str(time)}],
    }
    manifest = [{"Config": "config.json", "Layers": ["layer.tar"]}] * images
    content = [
        ("manifest.json", json.dumps(manifest).encode()),
        ("config.json", json.dumps(config).encode()),
        ("layer.tar", archive_of(files, time)),
    ]
    path.write_bytes(archive_of(content, time))
    return path


def test_repacked_archives_of_the_same_files_are_equal_and_keep_owner_and_mode() -> None:
    files = [("b", b"2"), ("a", b"1")]
    repacked = repack(archive_of(files, 5.5), TIME)
    assert repacked == repack(archive_of(files[::-1], 99), TIME)
    with tarfile.open(fileobj=io.BytesIO(repacked)) as archive:
        found = archive.getmember("b")
        assert (found.mtime, found.mode, found.uid) == (TIME, 0o4755, 65532)
        content = archive.extractfile(found)
        assert content is not None
        assert content.read() == b"2"


def test_repacked_archive_has_a_hard_link_after_its_file() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("z"))
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.LNKTYPE, "z"
        archive.addfile(link)
    with tarfile.open(fileobj=io.BytesIO(repack(buffer.getvalue(), TIME))) as archive:
        assert archive.getnames() == ["z", "a"]
        assert archive.getmember("a").linkname == "z"


def test_packed_directory_has_no_owner_and_no_time_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("x")
    (tmp_path / "program").chmod(0o700)
    (tmp_path / "link").symlink_to("program")
    before = pack_directory(tmp_path, "plugin", TIME)
    (tmp_path / "program").write_text("x")
    (tmp_path / "program").chmod(0o755)
    assert pack_directory(tmp_path, "plugin", TIME) == before
    with tarfile.open(fileobj=io.BytesIO(before)) as archive:
        assert {found.name: (found.uid, found.uname, found.mode) for found in archive} == {
            "plugin/link": (0, "", 0o755),
            "plugin/program": (0, "", 0o755),
        }


def test_compressed_content_has_no_time() -> None:
    assert compress(b"x")[4:8] == bytes(4)


def test_image_layouts_of_two_builds_are_equal(tmp_path: Path) -> None:
    def layout_of(files: Sequence[tuple[str, bytes]], time: float) -> tuple[str, bytes]:
        saved = saved_image(tmp_path / "saved.tar", files, time)
        return image_layout(saved, version="1.0.0", revision="abc", created="2026-01-01T00:00:00Z", time=TIME)

    files = [("opt/b", b"2"), ("opt/a", b"1")]
    platform, layout = layout_of(files, 5)
    assert platform == "linux-amd64"
    assert layout_of(files[::-1], 77) == (platform, layout)
    assert layout_of([("opt/b", b"3"), ("opt/a", b"1")], 5) != (platform, layout)


def test_archive_with_two_images_is_refused(tmp_path: Path) -> None:
    saved = saved_image(tmp_path / "saved.tar", [], 5, images=2)
    with pytest.raises(ValueError, match="must contain one image, but contains 2"):
        image_layout(saved, version="1", revision="a", created="", time=TIME)
