"""A folder, local or on an object store, in which an object is either wholly there or not there at all.

Objects are put under a temporary name and renamed where the file system renames atomically, and in one upload where
it does not. Parts are named by the sha256 of their content, so a part that did not change is not written again.
"""

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from pyarrow import fs

from headrace.errors import ConfigError, StoreError
from headrace.store.patience import Wait, patiently

_T = TypeVar("_T")


@dataclass(frozen=True)
class PartRef:
    """Names a content-addressed part. Made by whoever stores it, read by whoever loads a manifest."""

    sha256: str
    size_bytes: int


class Store:
    """Objects by name, and parts by content, under one URI. Cheap to construct; safe to use from several threads.

    A store that is away is waited for, with ``wait``; StoreError where it stays away, or is full.
    """

    def __init__(self, uri: str, wait: Wait = time.sleep) -> None:
        self.uri = uri
        self._wait = wait
        self._fs, self._root = resolve(uri)
        self._local = isinstance(self._fs, fs.LocalFileSystem)

    @property
    def local_root(self) -> Path | None:
        """The folder on this host, or None on an object store."""
        return Path(self._root) if self._local else None

    def put(self, name: str, content: bytes) -> None:
        """Store ``content`` under ``name``; readers see all of it or nothing. Replaces what was there."""
        self._patiently(partial(self._put, name, content), name)

    def _put(self, name: str, content: bytes) -> None:
        path = self._path(name)
        if not self._local:
            with self._fs.open_output_stream(path) as stream:
                stream.write(content)
            return
        temporary = Path(f"{self._root}/.tmp/{uuid.uuid4().hex}")
        try:
            try:
                temporary.write_bytes(content)
            except FileNotFoundError:
                temporary.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(content)
            try:
                os.replace(temporary, path)
            except FileNotFoundError:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)  # half of an object would hold space that is wanted
            raise

    def get(self, name: str) -> bytes:
        """The content stored under ``name``; FileNotFoundError when there is none."""
        return self._patiently(partial(self._get, name), name)

    def _get(self, name: str) -> bytes:
        path = self._path(name)
        if self._local:
            return Path(path).read_bytes()
        with self._fs.open_input_stream(path) as stream:
            return bytes(stream.readall())

    def exists(self, name: str) -> bool:
        """Whether ``name`` is stored."""
        path = self._path(name)
        if self._local:
            return os.path.exists(path)
        return bool(self._patiently(partial(self._fs.get_file_info, path), name).type == fs.FileType.File)

    def names(self, folder: str) -> list[str]:
        """The names (relative to ``folder``, sorted) of the objects directly in it; empty when it does not exist."""
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)
        listed = self._patiently(lambda: self._fs.get_file_info(selector), folder)
        return sorted(info.base_name for info in listed if info.type == fs.FileType.File)

    def delete(self, name: str) -> None:
        """Remove ``name``; nothing happens when it is not there."""
        if self.exists(name):
            self._patiently(partial(self._delete, name), name)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # gone in the turn before, which only failed to say so
            self._fs.delete_file(self._path(name))

    def put_part(self, content: bytes) -> PartRef:
        """Store ``content`` under its sha256, unless it is there already; one cut short by a crash is replaced."""
        ref = PartRef(hashlib.sha256(content).hexdigest(), len(content))
        if self._size(part_name(ref.sha256)) != ref.size_bytes:
            self.put(part_name(ref.sha256), content)
        return ref

    def get_part(self, ref: PartRef) -> bytes:
        """The part's content, verified against its digest; StoreError when it is missing or differs."""
        try:
            content = self.get(part_name(ref.sha256))
        except FileNotFoundError as error:
            raise StoreError(
                f"part {ref.sha256[:12]} is missing from {self.uri}: restore it or go back to an "
                "earlier commit (headrace versions)"
            ) from error
        digest = hashlib.sha256(content).hexdigest()
        if digest != ref.sha256:
            raise StoreError(
                f"part {ref.sha256[:12]} in {self.uri} is damaged (its content hashes to {digest[:12]}): "
                "restore it or go back to an earlier commit (headrace versions)"
            )
        return content

    def _size(self, name: str) -> int | None:
        """Bytes stored under ``name``; None when there is nothing."""
        if self._local:
            try:
                return os.stat(self._path(name)).st_size
            except FileNotFoundError:
                return None
        info = self._patiently(partial(self._fs.get_file_info, self._path(name)), name)
        return int(info.size) if info.type == fs.FileType.File else None

    def _patiently(self, action: Callable[[], _T], name: str) -> _T:
        return patiently(action, f"{name} in {self.uri}", is_local=self._local, wait=self._wait)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def part_name(sha256: str) -> str:
    """The object name of a part."""
    return f"parts/{sha256[:2]}/{sha256}"


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system and root path of a URI (``s3://...``, ``file:///...``) or of a local path, made absolute."""
    if "://" in uri:
        try:
            file_system, root = fs.FileSystem.from_uri(uri)
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"{uri} cannot be opened: {error}; write such as s3://bucket/folder, or a path"
            ) from error
        return file_system, root.rstrip("/")
    return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
