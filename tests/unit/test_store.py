import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyarrow import fs

from headrace.errors import ConfigError, FencedError, StoreBusyError, StoreError
from headrace.store import store as store_module
from headrace.store.arrays import dump_arrays, load_arrays
from headrace.store.fence import Epoch, StoreLock, check_epoch, take_epoch
from headrace.store.store import Store, part_name, resolve


@pytest.fixture(params=["local", "object store"])
def store(request, tmp_path, monkeypatch):
    """A store on a folder, and the same code path that an object store takes (a file system that is not local)."""
    if request.param == "local":
        return Store(str(tmp_path / "store"))
    root = tmp_path / "bucket"
    (root / "parts").mkdir(parents=True)
    remote = _Bucket(fs.SubTreeFileSystem(str(root), fs.LocalFileSystem()))
    monkeypatch.setattr(store_module, "resolve", lambda uri: (remote, "."))
    return Store("s3://bucket/store")


class _Bucket:
    """An object store has no folders: they come and go with their objects."""

    def __init__(self, inner):
        self._inner = inner

    def open_output_stream(self, path):
        self._inner.create_dir(os.path.dirname(path), recursive=True)
        return self._inner.open_output_stream(path)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def test_an_object_is_what_was_put_last(store):
    assert not store.exists("a/b")
    store.put("a/b", b"one")
    store.put("a/b", b"two")
    assert store.exists("a/b")
    assert store.get("a/b") == b"two"


def test_nothing_is_there_before_it_is_put(store):
    with pytest.raises(FileNotFoundError):
        store.get("a/b")
    assert store.names("a") == []


def test_names_are_sorted_and_hold_no_folders(store):
    for name in ("f/b", "f/a", "f/deeper/c", "g/d"):
        store.put(name, b"x")
    assert store.names("f") == ["a", "b"]


def test_what_is_deleted_is_gone_and_deleting_twice_is_nothing(store):
    store.put("a", b"x")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


def test_an_empty_object_is_an_object(store):
    store.put("empty", b"")
    assert store.exists("empty")
    assert store.get("empty") == b""
    assert store.get_part(store.put_part(b"")) == b""


def test_a_folder_is_not_an_object(tmp_path):
    store = Store(str(tmp_path))
    store.put("a/b", b"x")
    assert not Store(str(tmp_path)).names("nowhere")
    assert store.names("") == []


def test_a_part_is_named_by_its_content_and_written_once(store, monkeypatch):
    ref = store.put_part(b"content")
    assert store.get_part(ref) == b"content"
    writes = []
    monkeypatch.setattr(store, "put", lambda name, content: writes.append(name))
    assert store.put_part(b"content") == ref
    assert writes == []


def test_a_part_cut_short_is_written_again(store):
    ref = store.put_part(b"content")
    store.put(part_name(ref.sha256), b"cont")
    with pytest.raises(StoreError, match="is damaged"):
        store.get_part(ref)
    store.put_part(b"content")
    assert store.get_part(ref) == b"content"


def test_a_missing_part_says_what_to_do(store):
    ref = store.put_part(b"content")
    store.delete(part_name(ref.sha256))
    with pytest.raises(StoreError, match=r"is missing .*headrace versions"):
        store.get_part(ref)


def test_readers_never_see_half_an_object(tmp_path):
    store, contents = Store(str(tmp_path)), [bytes([value]) * 200_000 for value in range(8)]
    store.put("x", contents[0])
    torn, done = [], threading.Event()

    def read():
        while not done.is_set():
            seen = store.get("x")
            if seen not in contents:
                torn.append(len(seen))

    reader = threading.Thread(target=read)
    reader.start()
    for content in contents * 20:
        store.put("x", content)
    done.set()
    reader.join()
    assert not torn


def test_nothing_of_an_interrupted_put_is_seen(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.put("x", b"old")
    monkeypatch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(OSError("killed here")))
    with pytest.raises(OSError, match="killed here"):
        store.put("x", b"new")
    assert store.get("x") == b"old"
    assert store.names("") == ["x"]


@pytest.mark.parametrize("uri", ["foo://bucket/x", "file://relative"])
def test_a_uri_that_is_none(uri):
    with pytest.raises(ConfigError, match="cannot be opened"):
        Store(uri)


def test_paths_and_uris(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("runs/x")[1] == str(tmp_path / "runs" / "x")
    assert resolve(f"file://{tmp_path}/y/")[1] == f"{tmp_path}/y"
    assert Store("runs/x").local_root == tmp_path / "runs" / "x"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/x")[1] == str(tmp_path / "x")


# the fence


def test_epochs_grow(store):
    first, second = take_epoch(store), take_epoch(store)
    assert (first.number, second.number) == (1, 2)
    assert first.token != second.token


def test_a_newer_epoch_stops_the_older_writer(store):
    first = take_epoch(store)
    check_epoch(store, first)
    second = take_epoch(store)
    with pytest.raises(FencedError, match="a newer run has taken"):
        check_epoch(store, first)
    check_epoch(store, second)


def test_of_two_that_take_one_number_only_one_goes_on(store):
    lost = take_epoch(store)
    store.put("epochs/00000001.json", b'{"token": "other"}')
    with pytest.raises(FencedError, match="belongs to another run"):
        check_epoch(store, lost)
    check_epoch(store, Epoch(1, "other"))


def test_a_second_trainer_is_refused_in_words(tmp_path):
    store = Store(str(tmp_path))
    refused = pytest.raises(StoreBusyError, match=rf"process {os.getpid()}\) holds .*run\.dir=")
    with StoreLock(store), refused, StoreLock(store):
        pass
    with StoreLock(store):
        pass


def test_a_dead_trainers_lock_is_free(tmp_path):
    program = (
        "import os, sys\n"
        "from headrace.store.fence import StoreLock\n"
        "from headrace.store.store import Store\n"
        "StoreLock(Store(sys.argv[1])).__enter__()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert done.returncode == -9
    assert (tmp_path / "trainer.lock").read_text()
    with StoreLock(Store(str(tmp_path))):
        assert (tmp_path / "trainer.lock").read_text() == f"{os.getpid()}\n"


def test_a_process_that_was_started_meanwhile_does_not_keep_the_lock(tmp_path):
    program = "print('up', flush=True); input()"
    with StoreLock(Store(str(tmp_path))):
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
        )
        assert child.stdout.readline() == b"up\n"
    try:
        with StoreLock(Store(str(tmp_path))):
            pass
    finally:
        child.communicate(b"\n")


def test_the_lock_makes_the_stores_folder(tmp_path):
    with StoreLock(Store(str(tmp_path / "a" / "b"))):
        assert (tmp_path / "a" / "b" / "trainer.lock").is_file()


@pytest.mark.parametrize("error", [StoreError("a"), FencedError("b"), StoreBusyError("c"), ConfigError("d")])
def test_errors_cross_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


# arrays as bytes

_DTYPES = ["bool", "uint8", "int16", "int32", "int64", "uint64", "float32", "float64"]
_ARRAYS = st.one_of(
    *(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)) for dtype in _DTYPES)
)
_TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(lambda texts: np.array(texts, dtype=object))


@given(st.dictionaries(st.text(min_size=1, max_size=8, alphabet="ab/:ends"), st.one_of(_ARRAYS, _TEXTS), max_size=4))
def test_arrays_come_back_as_they_were(arrays):
    again = load_arrays(dump_arrays(arrays))
    assert set(again) == set(arrays)
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype
        assert again[name].shape == array.shape
        assert again[name].tobytes() == array.tobytes() or array.dtype == object
        assert again[name].tolist() == array.tolist() or array.dtype.kind == "f"
        assert again[name].flags.writeable


def test_equal_arrays_give_equal_bytes():
    one = {"a": np.arange(6).reshape(2, 3), "b": np.array(["x", "y"], dtype=object)}
    two = {"b": np.array(["x", "y"]), "a": np.asfortranarray(np.arange(6).reshape(2, 3))}
    assert dump_arrays(one) == dump_arrays(two)


def test_a_view_is_stored_as_what_it_shows():
    array = np.arange(10)
    assert load_arrays(dump_arrays({"a": array[::2]}))["a"].tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"not at all", b"\xff" * 64])
def test_bytes_that_are_no_arrays(content):
    with pytest.raises(StoreError, match="not safetensors"):
        load_arrays(content)
