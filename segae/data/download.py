"""Fetch an archive once, go on after a broken transfer, check it, and unpack it where it cannot do harm."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import pooch
import requests
import urllib3
from filelock import FileLock
from tqdm import tqdm

from segae.errors import SegaeError

_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 30.0


class ResumingDownloader:
    """A downloader for pooch that keeps what has arrived in a `.part` file and asks only for the rest.

    pooch's own downloader starts again from nothing after a broken transfer.
    """

    def __init__(self, part: Path, progress: bool = True) -> None:
        self.part = part
        self.progress = progress

    def __call__(self, url: str, output_file: str, _pooch: Any, check_only: bool = False) -> bool | None:
        """Bring `url` to `output_file`; the call and its arguments are pooch's protocol.

        Raises:
            OSError: the transfer broke (`requests.RequestException` is one); the `.part` file stays.
        """
        if check_only:
            return requests.head(url, timeout=_TIMEOUT_S, allow_redirects=True).ok
        with self._request(url) as response:
            total = self._receive(response)
        if total is not None and self.part.stat().st_size != total:
            raise ConnectionError(f"the transfer ended after {self.part.stat().st_size} of {total} bytes")
        self.part.replace(output_file)
        return None

    def _request(self, url: str) -> requests.Response:
        have = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        response = requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S)
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            response.close()
            self.part.unlink()  # complete or of another version: only a fresh transfer tells
            return self._request(url)
        response.raise_for_status()
        return response

    def _receive(self, response: requests.Response) -> int | None:
        """Write the body to the `.part` file; return the size that the whole file must have, if known."""
        resumed = response.status_code == requests.codes.partial_content
        have = self.part.stat().st_size if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(
            total=total,
            initial=have,
            unit="B",
            unit_scale=True,
            desc=self.part.stem,
            disable=None if self.progress else True,
        )
        try:
            with self.part.open("ab" if resumed else "wb") as file, bar:
                # not decoded: some servers declare a .tar.gz as gzip-encoded, and it must stay as it is
                for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
                    file.write(chunk)
                    bar.update(len(chunk))
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionError(str(error)) from error
        return total


def fetch_archive(url: str, checksum: str, root: Path, *, again: str, progress: bool = True) -> None:
    """Download a tar archive into `root` and unpack it there, unless that has been done before.

    Args:
        url: address of the archive.
        checksum: `md5:<hex>` or `sha256:<hex>`.
        root: folder that receives the archive and its contents; made if it is not there.
        again: the command that repeats this step, for error messages.
        progress: show a bar.

    Raises:
        SegaeError: no connection, wrong checksum, a member that would leave `root`, or a full disk.
    """
    name = url.rsplit("/", 1)[-1]
    done = root / f".{name}.unpacked"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            if done.exists() and done.read_text() == checksum:
                return
            downloader = ResumingDownloader(root / f"{name}.part", progress)
            pooch.retrieve(url, checksum, fname=name, path=root, downloader=downloader)
            unpack(root / name, root)
            done.write_text(checksum)  # last: its presence means that every member is on the disk
    except ValueError as error:  # pooch's way to report a checksum that does not match
        raise SegaeError(
            f"The file fetched from {url} is not the one expected ({error}). It was removed; type `{again}` "
            f"to fetch it again, and if that does not help, ask the site for the file with checksum "
            f"{checksum}."
        ) from error
    except (requests.RequestException, ConnectionError) as error:
        raise _no_transfer(url, error, again) from error
    except OSError as error:
        raise SegaeError(
            f"{url} cannot be stored in {root}: {error}. Wanted a folder with enough free space that may be "
            f"written to; make room or choose another folder, then type `{again}` to go on."
        ) from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive, refusing every member that would touch anything outside `folder`.

    Raises:
        SegaeError: a dangerous member, or an archive that is damaged.
    """
    try:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(folder, filter="data")
            else:  # Python before 3.10.12 has no filters
                tar.extractall(folder, members=[_checked(member, folder) for member in tar])
    except (tarfile.TarError, EOFError) as error:
        raise SegaeError(
            f"{archive} was not unpacked: {error}. Wanted a sound archive whose members stay inside "
            f"{folder}; delete {archive} and fetch it from a source that you trust."
        ) from error


def _checked(member: tarfile.TarInfo, folder: Path) -> tarfile.TarInfo:
    root = os.path.realpath(folder)
    target = os.path.realpath(folder / member.name)
    if os.path.commonpath([root, target]) != root or not (member.isfile() or member.isdir()):
        raise tarfile.TarError(f"member {member.name!r} would leave the folder or is not a plain file")
    member.mode = 0o755 if member.isdir() else 0o644
    return member


def _no_transfer(url: str, error: Exception, again: str) -> SegaeError:
    return SegaeError(
        f"{url} could not be fetched: {error}. Wanted a connection to that site; type `{again}` when there "
        f"is one, and the transfer goes on where it stopped."
    )
