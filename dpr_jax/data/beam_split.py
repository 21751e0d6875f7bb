"""Documents to passages on Apache Beam: `dpr split`, the cutting of `dpr prepare` spread over many
machines.

A file is the unit of work: one worker reads its documents one at a time and writes their passages
  as one shard. Nothing is shuffled and
nothing collected but a line of counts a file, so memory does not grow with the corpus on any
runner, and the order of the shards' names is the order of the passages. Files may lie wherever Beam
reads (gs://, s3://, hdfs://).
"""

import contextlib
import hashlib
import io
import json
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from dpr_jax import artifacts, console
from dpr_jax.config import Config, DataConfig
from dpr_jax.data import cut, named
from dpr_jax.data.fields import fields_of
from dpr_jax.data.raw import Passage
from dpr_jax.data.readers import documents
from dpr_jax.data.readers.columns import Chosen
from dpr_jax.errors import InputError

try:
    import apache_beam as beam
except ImportError:
    raise InputError(
        "dpr split needs Apache Beam; install it, in an environment of its own, with: pip install"
        " 'dpr_jax[beam]'"
    ) from None
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

MANIFEST = "manifest.json"
RESULTS = "results.json"  # how the workers tell what they did


class Document(NamedTuple):
    """A file of documents: its place in the order, where it lies, and the id of its document where
    it is plain text.
    """

    number: int
    path: str
    name: str


def run(config: Config, out: str, beam_options: list[str]) -> None:
    """Cuts config.data.passages into shards in the folder `out`, which data.passages may then name.

    Their manifest comes last.

    Args:
      config: what to cut and how, in its part `data`; for windows of tokens, `model.init` is the
        tokenizer.
      out: on a file system that Beam knows; without passages that are finished.
      beam_options: Beam's own, such as --runner=DataflowRunner.

    Raises:
      InputError: nothing to cut, a document cannot be read (file and line), Beam lacks an option,
        or `out` holds something else.
    """
    data = config.data
    if not (data.split_words or data.split_tokens):
        raise InputError(
            "data.split_words is 0; dpr split needs it, or data.split_tokens, to know how long"
            " passages are"
        )
    options = _options(beam_options)
    files = _files(data.passages)
    out = out.rstrip("/")
    _clear(out)

    # --- every file becomes a shard, and a line of counts
    console.say(f"split: {len(files):,} files of {data.passages}")
    pipeline = beam.Pipeline(options=options)
    _ = (
        pipeline
        | "files" >> beam.Create(files)
        | "cut" >> beam.ParDo(Cutting(data, config.model.init, out, len(files)))
        | "counts" >> beam.combiners.ToList()
        | "tell" >> beam.Map(_write_json, f"{out}/{RESULTS}")
    )
    pipeline.run().wait_until_finish()
    with FileSystems.open(f"{out}/{RESULTS}") as file:
        results = sorted(json.load(file), key=lambda result: result["number"])

    # --- all of it, or nothing
    errors = [result["error"] for result in results if "error" in result]
    if errors:
        _clear(out)
        more = f" (and {len(errors) - 1:,} more files)" if len(errors) > 1 else ""
        raise InputError(errors[0] + more)
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result["counts"])
    manifest = {
        "counts": counts,
        "made_from": artifacts.made_from("split", _settings(config), {}),
        "files": {k: v for result in results for k, v in result["files"].items()},
        "versions": artifacts.versions(),
    }
    _write_json(manifest, f"{out}/{MANIFEST}")
    FileSystems.delete([f"{out}/{RESULTS}"])
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    console.say(f"split: {said}; prepare them with --data.passages {out}")


class Cutting(beam.DoFn):
    """Writes the shard of a file of documents; yields what went into it, or its error."""

    def __init__(self, data: DataConfig, model: str, out: str, files: int) -> None:
        self._data, self._model, self._out, self._files = data, model, out, files
        self._cut: cut.Cut | None = None

    def setup(self) -> None:
        self._cut = named.how_to_cut(self._data, self._model)

    def process(self, document: Document) -> Iterator[dict[str, Any]]:
        try:
            yield {"number": document.number} | self._shard(document)
        except InputError as error:
            yield {"number": document.number, "error": str(error)}

    def _shard(self, document: Document) -> dict[str, Any]:
        width = len(str(self._files))
        name = f"passages-{document.number:0{width}}-of-{self._files}.jsonl"
        partial = f"{self._out}/{name}.partial-{uuid.uuid4().hex}"
        counts: Counter[str] = Counter()
        digest, size = hashlib.sha256(), 0
        # a bundle may be tried twice, and at the same time: each writes a file of its own, with the
        # same bytes
        try:
            with _create(partial) as file:
                chosen = Chosen("passages", self._data.columns, "passages")
                alone = self._files == 1
                for passage in _passages(document, self._cut, counts, chosen, alone=alone):
                    record = {**fields_of(passage), **passage._asdict()}
                    text = json.dumps(record, ensure_ascii=False)
                    line = f"{text}\n".encode()
                    file.write(line)
                    digest.update(line)
                    size += len(line)
                    counts["passages"] += 1
        except InputError:
            FileSystems.delete([partial])
            raise
        if not counts["passages"]:
            FileSystems.delete([partial])
            return {"counts": counts, "files": {}}
        FileSystems.rename([partial], [f"{self._out}/{name}"])
        entry = {"sha256": digest.hexdigest(), "bytes": size}
        return {"counts": counts, "files": {name: entry}}


def _passages(
    document: Document, how: cut.Cut, counts: Counter[str], chosen: Chosen, *, alone: bool
) -> Iterator[Passage]:
    """Yields the passages of a file; messages name it as it is called, wherever it is read."""
    with _here(document.path) as file:
        try:
            if not alone and documents.is_binary(file):
                counts[documents.NOT_TEXT] += 1
                return
            _, read, _ = documents.recognised_file(file, document.name, chosen)
            for _, passage in cut.into_passages(read(file, None), how, counts):
                yield passage
        except InputError as error:
            message = str(error).replace(str(file), document.path)
            raise InputError(message) from None


@contextlib.contextmanager
def _here(path: str) -> Iterator[Path]:
    """Yields a file on this machine: itself, or a copy of one that lies elsewhere."""
    if not _is_far(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PurePosixPath(path).name
        # as it is: the readers unpack
        with (
            FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as f,
            copy.open("wb") as file,
        ):
            shutil.copyfileobj(f, file)
        yield copy


def _files(path: str) -> list[Document]:
    """Returns the file, or all files below the folder, in the order of `dpr prepare`."""
    if _is_far(path):
        found = _matched(f"{path.rstrip('/')}/**") or _matched(path)
        shown = [one for one in found if not PurePosixPath(one).name.startswith(".")]
        below = sorted(shown, key=PurePosixPath)
    else:
        below = [str(file) for file in documents.below(Path(path))]
    if not below or not (path and (_is_far(path) or Path(path).exists())):
        raise InputError(
            f"data.passages is {path!r}, where there is nothing; it must be a file or folder of"
            " documents"
        )
    top = PurePosixPath(path)
    return [
        Document(number, file, documents.name_of(PurePosixPath(file), top))
        for number, file in enumerate(below)
    ]


def _clear(out: str) -> None:
    """Removes what an unfinished run left; a folder that holds anything else is refused."""
    left = _matched(f"{out}/*")
    for path in left:
        name = PurePosixPath(path).name
        if name == MANIFEST:
            raise InputError(
                f"--out {out} holds passages already ({MANIFEST} is there); give another folder, or"
                " remove it"
            )
        if not name.startswith(("passages-", RESULTS, MANIFEST)):
            raise InputError(
                f"--out {out} holds {name}, which dpr split did not write; give a new folder"
            )
    if left:
        FileSystems.delete(left)


def _settings(config: Config) -> dict[str, Any]:
    data = config.data
    return {
        "documents": data.passages,
        "words": data.split_words,
        "tokens": data.split_tokens,
        "stride_tokens": data.split_stride_tokens,
        "tokenizer": config.model.init if data.split_tokens else None,
    } | ({"columns": data.columns} if data.columns else {})


def _options(flags: list[str]) -> PipelineOptions:
    """Beam's options; it would pass over one that it does not know, and run everything on this
    machine.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(flags)
            known = options.get_all_options()
            given = options.get_all_options(retain_unknown_options=True)
    except SystemExit:
        reason = said.getvalue().strip().rpartition("\n")[2]
        raise InputError(f"Apache Beam's options, after --: {reason}") from None
    unknown = sorted(given.keys() - known.keys())
    # a job server has options of its own
    if unknown and not options.view_as(PortableOptions).job_endpoint:
        raise InputError(
            f"Apache Beam has no option --{unknown[0]}; what stands after -- is Beam's"
        )
    return options


def _is_far(path: str) -> bool:
    return "://" in path


def _matched(pattern: str) -> list[str]:
    """Returns the files that a pattern of Beam's matches."""
    try:
        (match,) = FileSystems.match([pattern])
    except (BeamIOError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{pattern} cannot be looked at: {reason}") from None
    return [file.path for file in match.metadata_list]


def _create(path: str) -> BinaryIO:
    return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)


def _write_json(value: Any, path: str) -> None:
    """Writes JSON aside and renames it: whoever reads it sees all of it."""
    partial = f"{path}.partial-{uuid.uuid4().hex}"
    with _create(partial) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode())
    FileSystems.rename([partial], [path])
