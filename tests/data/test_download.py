"""Downloads against a server on this machine: broken, resumed, forged, hostile."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segae.data.download import fetch_archive, unpack
from segae.data.oxford_pets import download
from segae.errors import SegaeError


class Site:
    """What the server serves and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        self.break_after: int | None = None
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    def __init__(self, site: Site, *args: object) -> None:
        self.site = site
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.site.requests.append((self.path, asked))
        body = self.site.files.get(self.path.lstrip("/"))
        if body is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.site.ranges else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("Content-Encoding", "x-gzip")  # as some servers wrongly declare a .tar.gz
        self.end_headers()
        end, self.site.break_after = self.site.break_after, None
        self.wfile.write(body[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, site))
    site.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def pack(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def serve_pets(site: Site) -> dict[str, str]:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    lists = {"annotations/trainval.txt": b"A_1 1 1 1\n", "annotations/test.txt": b"A_2 1 1 1\n"}
    trimap = png(np.uint8([[1, 2, 3]]))
    site.files = {
        "images.tar.gz": pack({f"images/A_{n}.jpg": png(noise) for n in (1, 2)}),
        "annotations.tar.gz": pack({f"annotations/trimaps/A_{n}.png": trimap for n in (1, 2)} | lists),
    }
    return {name: "md5:" + hashlib.md5(body).hexdigest() for name, body in site.files.items()}


def test_download_unpacks_and_opens_and_is_not_repeated(site: Site, tmp_path: Path) -> None:
    archives = serve_pets(site)
    data = download(tmp_path / "pets", site.url, archives)
    assert [pair.name for pair in data.splits["train"]] == ["A_1"]
    assert len(site.requests) == 2
    download(tmp_path / "pets", site.url, archives)
    (tmp_path / "pets" / "images.tar.gz").unlink()  # the user makes room
    download(tmp_path / "pets", site.url, archives)
    assert len(site.requests) == 2


def test_an_unfinished_unpacking_is_done_again(site: Site, tmp_path: Path) -> None:
    archives = serve_pets(site)
    download(tmp_path, site.url, archives)
    (tmp_path / ".images.tar.gz.unpacked").unlink()  # as if killed before the last step
    (tmp_path / "images" / "A_2.jpg").write_bytes(b"half")
    assert download(tmp_path, site.url, archives).missing == 0
    assert (tmp_path / "images" / "A_2.jpg").stat().st_size > 1000
    assert len(site.requests) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_goes_on_where_it_stopped(site: Site, tmp_path: Path, ranges: bool) -> None:
    archives = serve_pets(site)
    site.ranges = ranges
    site.break_after = 200_000
    with pytest.raises(SegaeError, match=f"segae data pets --root {tmp_path}"):
        download(tmp_path, site.url, archives)
    kept = (tmp_path / "images.tar.gz.part").stat().st_size
    assert 0 < kept <= 200_000
    assert not (tmp_path / "images").exists()
    assert len(download(tmp_path, site.url, archives).splits["test"]) == 1
    assert site.requests[1] == ("/images.tar.gz", f"bytes={kept}-")
    assert not (tmp_path / "images.tar.gz.part").exists()


def test_a_partial_file_that_is_already_whole_or_foreign_is_replaced(site: Site, tmp_path: Path) -> None:
    archives = serve_pets(site)
    (tmp_path / "images.tar.gz.part").write_bytes(b"x" * len(site.files["images.tar.gz"]))
    download(tmp_path, site.url, archives)
    assert [asked for _, asked in site.requests[:2]] == [f"bytes={len(site.files['images.tar.gz'])}-", None]


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    archives = serve_pets(site) | {"images.tar.gz": "md5:" + "0" * 32}
    with pytest.raises(SegaeError, match="not the one expected"):
        download(tmp_path, site.url, archives)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_no_connection_and_no_file_say_what_to_do(site: Site, tmp_path: Path) -> None:
    with pytest.raises(SegaeError, match=r"could not be fetched.*404"):
        fetch_archive(site.url + "gone.tar.gz", "md5:0", tmp_path, again="segae data pets", progress=False)
    with pytest.raises(SegaeError, match=r"could not be fetched.*type `segae data pets --root"):
        download(tmp_path, "http://127.0.0.1:9/", {"images.tar.gz": "md5:0"})


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SegaeError, match="cannot be stored in"):
        download(tmp_path / "file" / "pets", "http://127.0.0.1:9/", {"images.tar.gz": "md5:0"})


def link(target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("inside")
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize("has_filters", [True, False])
@pytest.mark.parametrize("evil", [tarfile.TarInfo("../evil"), link("/etc"), link("../..")])
def test_members_that_leave_the_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: tarfile.TarInfo, has_filters: bool
) -> None:
    if not has_filters:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(evil)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SegaeError, match="was not unpacked"):
        unpack(archive, tmp_path / "folder")
    assert not (tmp_path / "evil").exists()
    assert not list((tmp_path / "folder").iterdir())


def test_an_archive_without_filters_is_unpacked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    (tmp_path / "a.tar.gz").write_bytes(pack({"images/one.txt": b"1"}))
    unpack(tmp_path / "a.tar.gz", tmp_path)
    assert (tmp_path / "images" / "one.txt").read_text() == "1"


def test_a_damaged_archive_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cut.tar.gz").write_bytes(pack({"a": bytes(100_000)})[:60])
    with pytest.raises(SegaeError, match="was not unpacked"):
        unpack(tmp_path / "cut.tar.gz", tmp_path)
