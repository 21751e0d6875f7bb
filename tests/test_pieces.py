"""The corpus, cut into pieces that several workers and processes read: same rows, same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from object_storage import BUCKET, files, server
from test_multiprocess import ROOT, twice

from dpr_jax import artifacts, host
from dpr_jax.config import Config, DataConfig
from dpr_jax.data import corpus, prepare, store
from dpr_jax.data.readers import detect, pieces
from dpr_jax.data.store import Corpus
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir, open_workdir

DPR = """
from dpr_jax.data.readers import pieces

pieces.PIECE_BYTES = 2000
from dpr_jax.cli import main; main()
"""
QUOTED = [
    'a ""quoted"" word',
    "over two\nlines\twith a tab",
    "three\n\nlines, one of them empty",
    '""begins and ends""',
    "plain",
    "a line\r\nends in CRLF",
]


def quoted_tsv(rows: int) -> str:
    """A corpus as csv.writer writes it: every text in quotes, with line ends and tabs inside."""
    lines = [f'{n}\t"{QUOTED[n % len(QUOTED)]} {n}"\tTitle {n}' for n in range(rows)]
    return "\n".join(["id\ttext\ttitle", *lines, ""])


def letters_tsv(rows: int) -> str:
    """A corpus whose quotes are letters: an inch here, an opened quote there."""
    texts = ['"Eureka" he cried', 'a 5" disk', '"to be', 'or not"', "plain"]
    lines = [f"{n}\t{texts[n % len(texts)]} {n}\tTitle {n}" for n in range(rows)]
    return "\n".join(["id\ttext\ttitle", *lines])


CORPORA = {
    "quoted.tsv": quoted_tsv(300),
    "letters.tsv": letters_tsv(300),
    "commas.csv": "_id,title,text\n"
    + "".join(f'{n},"T, {n}","one\ntwo {n}"\n' for n in range(300)),
    "lines.jsonl": "\n".join(json.dumps({"_id": str(n), "text": f'"{n}'}) for n in range(300)),
    "collection.tsv": "".join(f'{n}\tthe "text {n} of it\n' for n in range(300)),
    "late.jsonl": "\n\n" + '{"id": "a", "contents": "b"}\n' * 1 + "\n" * 900,
}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def fingerprint(folder: Path) -> dict[str, str]:
    return {file.name: artifacts.checksum(file) for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("piece_bytes", [37, 500])
def test_pieces_hold_the_rows_of_the_file_in_order(
    name: str, piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(host, "cores", lambda processes=1: 1)
    source = detect.passages(write(tmp_path / name, CORPORA[name]))
    wanted = [passage for _, passage in source.read(None)]
    letters = source.literal and (source.literal.count, source.literal.example)
    facts, _ = corpus.write_corpus(source, tmp_path)
    assert [*Corpus(tmp_path / "corpus")] == wanted
    assert facts.passages == len(wanted)
    assert facts.table.rows([one.id for one in wanted]) == [*range(len(wanted))]
    assert letters == (source.literal and (source.literal.count, source.literal.example))


def test_workers_write_the_bytes_that_one_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2000)
    source = detect.passages(write(tmp_path / "p.tsv", quoted_tsv(900)))
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(host, "cores", lambda processes=1, cores=cores: cores)
        (tmp_path / str(cores)).mkdir()
        facts, _ = corpus.write_corpus(source, tmp_path / str(cores))
        found.append((fingerprint(tmp_path / str(cores) / "corpus"), facts.passages))
    assert found[0] == found[1] and found[0][1] == 900
    assert len([name for name in found[0][0] if "array_record" in name]) > 5


@pytest.mark.parametrize("cores", [1, 2])
def test_an_error_in_a_piece_names_its_line(
    cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 500)
    monkeypatch.setattr(host, "cores", lambda processes=1: cores)
    text = quoted_tsv(300)
    line = text[: text.index("\n250\t")].count("\n") + 2
    path = write(tmp_path / "p.tsv", text.replace("\n250\t", "\n25 0\t"))
    with pytest.raises(InputError, match=rf"p\.tsv:{line}: passage id '25 0' must be one word"):
        corpus.write_corpus(detect.passages(path), tmp_path)
    path = write(tmp_path / "p.tsv", text + '300\t"never closed\n')
    with pytest.raises(InputError, match=rf"p\.tsv:{text.count(chr(10)) + 1}: a quote .* never"):
        corpus.write_corpus(detect.passages(path), tmp_path)


def test_a_file_that_is_cut_within_a_row_is_read_from_begin_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stray quote makes the inside of a text look like the outside."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 300)
    monkeypatch.setattr(host, "cores", lambda processes=1: 1)
    lines = [f'{n}\t"line one\nline two\nline {n}"\tTitle' for n in range(60)]
    text = "\n".join(["id\ttext\ttitle", 'x\ta 5" disk\tDisk', *lines, ""])
    source = detect.passages(write(tmp_path / "p.tsv", text))
    with (tmp_path / "p.tsv").open("rb") as file:
        cuts = list(pieces.cut(file, "p", "p", header=True, quoted=True))
    assert any(one.content.splitlines()[1].startswith(b"line") for one in cuts)  # one is wrong
    corpus.write_corpus(source, tmp_path)
    assert [*Corpus(tmp_path / "corpus")] == [passage for _, passage in source.read(None)]


def in_processes(
    count: int, tmp_path: Path, name: str, code: str = DPR, **data: str
) -> subprocess.CompletedProcess[str]:
    """`dpr prepare` in new processes; `data` are files of its corpus."""
    args = [word for key, file in data.items() for word in (f"--data.{key}", file)]
    command = ("prepare", *args, "--workdir", str(tmp_path / name))
    return twice(code, tmp_path / f"{name}-logs", *command, processes=count)


def data_of(workdir: WorkDir) -> str:
    return artifacts.fingerprint(workdir.data / "manifest.json")


def test_two_processes_prepare_the_bytes_that_one_prepares(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tsv", quoted_tsv(300))
    told = DPR.replace(
        "from dpr_jax.cli",
        """
from dpr_jax.data import piecewise

write = piecewise.write

def telling(*args, share, **more):
    print(f"share {share.index} of {share.of}", flush=True)
    return write(*args, share=share, **more)

piecewise.write = telling
from dpr_jax.cli""",
    )
    done = in_processes(2, tmp_path, "two", told, passages=str(path))
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / "two-logs" / f"process-{n}.log").read_text() for n in range(2)]
    assert "share 0 of 2" in logs[0] and "share 1 of 2" in logs[1]
    command = [sys.executable, "-c", DPR, "prepare", "--data.passages", str(path)]
    subprocess.run(
        [*command, "--workdir", str(tmp_path / "one")],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    one, two = (open_workdir(tmp_path / name) for name in ("one", "two"))
    assert one.data.name == two.data.name and data_of(one) == data_of(two)
    assert len(store.open_corpus(two)) == 300
    assert not [*two.root.glob("*.building")]

    text = quoted_tsv(300)
    bad = write(tmp_path / "bad.tsv", text.replace("\n250\t", "\n25 0\t"))
    done = in_processes(2, tmp_path, "bad", passages=str(bad))
    said = "".join(log.read_text() for log in (tmp_path / "bad-logs").glob("*.log"))
    assert done.returncode == 2 and said.count("passage id '25 0' must be one word") == 1
    assert "Traceback" not in said and not [*(tmp_path / "bad").glob("data-*/manifest.json")]


def test_two_processes_without_a_common_disk_prepare_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "p.tsv", quoted_tsv(300))
    with server(tmp_path) as storage:
        for name, value in storage.items():
            monkeypatch.setenv(name, value)
        files(storage).put_file(str(path), f"{BUCKET}/p.tsv")
        url = f"s3://{BUCKET}/w"
        command = ("prepare", "--data.passages", f"s3://{BUCKET}/p.tsv", "--workdir", url)
        done = twice(DPR, tmp_path / "logs", *command)
        assert done.returncode == 0, done.stdout + done.stderr
        monkeypatch.setenv("DPR_CACHE", str(tmp_path / "another"))
        found = data_of(open_workdir(url))
        assert not [name for name in files(storage).find(f"{BUCKET}/w") if ".building" in name]
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2000)
    here = open_workdir(tmp_path / "here")
    prepare.run(Config(data=DataConfig(passages=str(path))), here)
    assert found == data_of(here)
