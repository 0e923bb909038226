"""Attachment records and the log: files that may be damaged, full or fought over."""

import json
import os

import pytest

from cni_plugin.kernel import journal, state


def test_a_record_comes_back(tmp_path) -> None:
    """CHECK, DEL and explain read another record than ADD wrote."""
    state.Draft(str(tmp_path), "c1", "eth0").commit({"a": [1, "ü"]})
    assert state.load(str(tmp_path), "c1", "eth0") == {"a": [1, "ü"]}
    assert state.load(str(tmp_path), "c1", "eth1") is None
    assert state.attachments(str(tmp_path)) == [("c1", "eth0")]


def test_an_abandoned_draft_leaves_the_old_record(tmp_path) -> None:
    """A failed second ADD loses the record of the first, and its rules become nobody's."""
    state.Draft(str(tmp_path), "c1", "eth0").commit({"a": 1})
    state.Draft(str(tmp_path), "c1", "eth0").abandon()
    assert state.load(str(tmp_path), "c1", "eth0") == {"a": 1}
    assert os.listdir(tmp_path / "attachments") == ["c1:eth0.json"]


def test_remove_twice(tmp_path) -> None:
    """A second DEL fails, and the kubelet repeats it for ever."""
    state.Draft(str(tmp_path), "c1", "eth0").commit({})
    state.remove(str(tmp_path), "c1", "eth0")
    state.remove(str(tmp_path), "c1", "eth0")
    assert state.attachments(str(tmp_path)) == []


def test_damage_is_said(tmp_path) -> None:
    """Half a record is taken for a whole one."""
    state.Draft(str(tmp_path), "c1", "eth0").commit({"a": 1})
    (tmp_path / "attachments" / "c1:eth0.json").write_text('{"a"')
    with pytest.raises(ValueError, match=r"JSON|character|quotes|delimiter"):
        state.load(str(tmp_path), "c1", "eth0")


def test_what_a_killed_writer_began_is_known(tmp_path) -> None:
    """Rules that a killed ADD made are nobody's, or its draft stays for ever."""
    pid = os.fork()
    if pid == 0:
        state.Draft(str(tmp_path), "c1", "eth0").begin({"a": 1})
        os._exit(0)
    os.waitpid(pid, 0)
    assert state.attachments(str(tmp_path)) == [("c1", "eth0")]
    second = state.Draft(str(tmp_path), "c1", "eth0")
    assert second.unfinished == {"a": 1}
    second.abandon()
    third = state.Draft(str(tmp_path), "c1", "eth0")
    assert third.unfinished == {"a": 1}
    third.settled()
    third.commit({"b": 2})
    assert os.listdir(tmp_path / "attachments") == ["c1:eth0.json"]
    fourth = state.Draft(str(tmp_path), "c1", "eth0")
    assert fourth.unfinished is None
    fourth.abandon()


def test_one_call_at_a_time(tmp_path) -> None:
    """Two calls for one attachment take each other's half for the whole."""
    mine = state.Draft(str(tmp_path), "c1", "eth0")
    with pytest.raises(BlockingIOError):
        state.Draft(str(tmp_path), "c1", "eth0", wait=False)
    state.Draft(str(tmp_path), "c2", "eth0", wait=False).abandon()
    mine.commit({})
    state.Draft(str(tmp_path), "c1", "eth0", wait=False).abandon()


def test_records_are_for_root_only(tmp_path) -> None:
    """Other users of the node read what pods there are and how they are redirected."""
    state.Draft(str(tmp_path / "new"), "c1", "eth0").commit({})
    assert (tmp_path / "new" / "attachments").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new" / "attachments" / "c1:eth0.json").stat().st_mode & 0o777 == 0o600


def test_the_log_is_lines_of_json(tmp_path, capfd: pytest.CaptureFixture[str]) -> None:
    """The log cannot be read by a machine, or the runtime's own log has nothing of it."""
    path = tmp_path / "deep" / "log"
    journal.write(str(path), "info", "info", {"verb": "ADD", "bad": "\udcff"})
    journal.write(str(path), "info", "debug", {"verb": "DEL"})
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["verb"] == "ADD"
    assert capfd.readouterr().err == line + "\n"


def test_the_log_is_bounded(tmp_path) -> None:
    """The log fills the node's disk."""
    path = tmp_path / "log"
    path.write_bytes(b"x" * (journal._LIMIT + 1))
    journal.write(str(path), "info", "info", {"n": 1})
    journal.write(str(path), "info", "info", {"n": 2})
    assert json.loads(path.read_text())["n"] == 2
    assert (tmp_path / "log.1").stat().st_size > journal._LIMIT


@pytest.mark.parametrize("bad", ["/proc/none/log", "/dev/full", "fifo", "link"])
def test_the_log_never_fails_or_waits(tmp_path, bad: str) -> None:
    """A log that cannot be written fails an ADD, hangs it, or follows somebody's symlink."""
    path = tmp_path / bad if not bad.startswith("/") else bad
    if bad == "fifo":
        os.mkfifo(path)
    if bad == "link":
        (tmp_path / "victim").write_text("")
        os.symlink(tmp_path / "victim", path)
    journal.write(str(path), "info", "info", {"n": 1})
    if bad == "link":
        assert (tmp_path / "victim").read_text() == ""
