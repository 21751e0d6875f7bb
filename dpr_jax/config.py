"""Every setting of every stage, declared once: name, type, bounds, unit, default.

A file in configs/ builds one `Config`; the command line overrides single values
(`--train.learning-rate 1e-5`). Only the command line and each stage's `run` see the whole
`Config`; deeper functions take the values they need. None means "choose" or "off"; 0 means zero.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from dpr_jax.bounds import Bounds, Count, Positive, Rate, Share
from dpr_jax.config_serve import ServeConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The raw files, plain or packed, here or at URLs, read by `dpr prepare`.

    docs/data.md lists the layouts that are recognised. Relative paths are relative to the current
    directory.
    """

    passages: str | None = None
    """Corpus: a file, such as DPR's TSV `id, text, title`, a BEIR folder, a folder of text files,
    or the output of `dpr split`; None: the passages that come with the questions."""
    train: str | tuple[str, ...] = ()
    """Training questions: a file, such as DPR JSON, a BEIR folder, or `tfds:NAME#SPLIT`. With
    several, each batch is drawn from one of them."""
    dev: str | None = None
    """Development questions: as for data.train."""
    test: str | tuple[str, ...] = ()
    """Test questions: as for data.train, or questions alone, such as DPR's question/answers file.
    With several, each has a table of its own, named by file or as NAME=PATH. A BEIR folder with
    another corpus than data.passages is asked of its own."""
    train_qrels: str | None = None
    """Qrels of the training questions (TREC, BEIR, or MS MARCO triples of ids); None: gold passages
    are those in data.train."""
    dev_qrels: str | None = None
    """Qrels of the development questions; None: gold passages are those in data.dev."""
    test_qrels: str | None = None
    """Qrels of the test questions; None: gold passages are those in data.test, if any."""
    on_missing: Literal["error", "drop"] | None = None
    """Gold passages that are not in the corpus: an error, or dropped and counted; None: dropped if
    qrels name them, an error if a question's own row does."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Roles of columns that are not recognised by name: {"question": "q", "positive": "3"}, by name
    or number; `test.question` is for one file, `ignore` leaves columns out (docs/data.md)."""
    positive_from: Annotated[float, Bounds()] | None = None
    """Lowest label or score of a positive in labelled pairs; None: labels are whole numbers, and 1
    or more is positive."""
    split_words: Positive | None = None
    """Split the documents of data.passages into disjoint passages of this many words (100 in the
    paper)."""
    split_tokens: Positive | None = None
    """Split the documents of data.passages into windows of this many tokens of the encoder's
    tokenizer."""
    split_stride_tokens: Positive | None = None
    """Tokens from the start of one window to the start of the next; None: data.split_tokens, so
    windows do not overlap."""
    max_train_questions: Positive | None = None
    """Training questions to use of each file, drawn at random by `seed`; None: all."""

    @property
    def train_files(self) -> tuple[str, ...]:
        """`train` as a tuple, empty where it names nothing."""
        return (self.train,) if isinstance(self.train, str) else tuple(self.train or ())

    @property
    def test_files(self) -> tuple[str, ...]:
        """`test` as a tuple, empty where it names nothing."""
        return (self.test,) if isinstance(self.test, str) else tuple(self.test or ())


Language = Literal[
    *("english", "none", "chinese", "japanese", "korean", "thai", "lao", "khmer", "burmese"),
    *("arabic", "armenian", "basque", "catalan", "czech", "danish", "dutch", "esperanto"),
    *("estonian", "finnish", "french", "german", "greek", "hindi", "hungarian", "indonesian"),
    *("irish", "italian", "lithuanian", "nepali", "norwegian", "persian", "polish", "portuguese"),
    *("romanian", "russian", "serbian", "spanish", "swedish", "tamil", "turkish", "yiddish"),
]


@dataclasses.dataclass(frozen=True)
class Bm25Config:
    """Okapi BM25 over title and text, with stemming and stop words (bm25s, PyStemmer)."""

    k1: Annotated[float, Bounds(least=0)] = 0.9
    """Term-frequency saturation (0.9 in the DPR paper)."""
    b: Annotated[float, Bounds(least=0, most=1)] = 0.4
    """Length normalization (0.4 in the DPR paper)."""
    language: Language | None = None
    """Language of stop words and stemming; scripts without spaces are indexed by pairs of
    characters; "none" does neither. None: detected from the corpus."""


# (question, its candidates as (title, text)) -> for each, whether it may be a hard negative
Filter = Callable[[str, list[tuple[str, str]]], Sequence[bool]]
# (question, its gold and hard negative passages as (title, text)) -> a score of each, higher for
# better
Teacher = Callable[[str, list[tuple[str, str]]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class MineConfig:
    """Hard negatives: high-ranking passages that are not gold, not near copies of gold, and contain
    no answer.
    """

    enabled: bool | None = None
    """Mine hard negatives; None: only if the training questions have none of their own."""
    sources: tuple[str, ...] = ("bm25",)
    """Retrievers to mine from, by name; with several, their top passages are taken in turn. bm25 is
    always there. A dense one must be encoded and indexed first; the pipeline does that for those in
    `compare`."""
    depth: Positive = 8
    """Hard negatives to keep per question."""
    skip: Count = 0
    """Top passages of a source to skip, gold or not: the very best may be unmarked positives."""
    window: Positive = 100
    """Top passages of a source to look through, `skip` included."""
    sample: bool = False
    """Draw at random from the whole window; otherwise take the best."""
    relative_margin: Annotated[float, Bounds(least=0)] | None = None
    """Keep only passages that score this much lower than the first gold passage: with 0.05, at most
    95 % of its score. None: no limit."""
    filter: Filter | None = None
    """Function of the config file that decides if a passage may be a hard negative, for example by
    a cross-encoder (docs/mining.md)."""
    teacher: Teacher | None = None
    """Function of the config file that scores the gold and mined passages of training questions for
    `train.distillation`, for example by a cross-encoder."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The two towers; None: as the model folder says."""

    init: str = "packaged:all-MiniLM-L6-v2"
    """Initial weights of both towers: a Hugging Face hub id, a folder, `retriever:NAME`, or
    `packaged:all-MiniLM-L6-v2` (needs no network)."""
    shared_towers: bool = False
    """Use one set of weights for questions and passages."""
    pooling: (
        Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"] | None
    ) = None
    """Pooling of token states into the vector: the last layer's [CLS] state (DPR), the mean over
    real tokens, or another of sentence-transformers' poolings."""
    normalize: bool | None = None
    """Scale vectors to unit length."""
    max_question_tokens: Annotated[int, Bounds(least=4)] | None = None
    """Longest question in tokens, special tokens included; longer ones are cut. None: as the folder
    says, at most 64 if it says nothing."""
    max_passage_tokens: Annotated[int, Bounds(least=8)] | None = None
    """Longest passage (title and text) in tokens, special tokens included; None: as the folder
    says, at most 256 if it says nothing."""
    question_prompt: str | None = None
    """Text before every question; it counts as tokens of the question. E5 has "query: ". None: as
    the folder says, else as known for the encoder (docs/encoders.md)."""
    passage_prompt: str | None = None
    """Text before every passage; see model.question_prompt."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training of the dual encoder with in-batch negatives over the global batch."""

    batch_size: Positive = 128
    """Questions in the global batch, over all devices."""
    hard_negatives: Count = 1
    """Hard negatives per question, drawn anew each epoch; the batch has batch_size * (1 +
    hard_negatives) passages."""
    upsampling: tuple[Annotated[float, Bounds(above=0)], ...] = ()
    """Weight of each file of data.train, one number per file: 4 makes its batches four times as
    frequent. Empty: 1."""
    shuffle_positives: bool = False
    """Draw the positive from all positives; otherwise the first is taken (DPR)."""
    total_steps: Positive | None = None
    """Number of updates; None: by epochs."""
    epochs: Annotated[float, Bounds(above=0)] | None = None
    """Passes over the training questions, in place of total_steps; None for both: 10, but at most
    1,000 updates."""
    learning_rate: Rate = 2e-5
    """Peak learning rate of AdamW."""
    warmup: Annotated[float, Bounds(least=0, below=1, unit="a share of the updates")] = 0.1
    """Share of the updates in which the rate rises linearly to its peak, before it decays to
    zero."""
    weight_decay: Annotated[float, Bounds(least=0)] = 0.0
    """Decoupled weight decay, not applied to biases and LayerNorm."""
    clip_norm: Rate | None = 2.0
    """Clip the gradient to this global norm; None does not clip."""
    dpr_parity: bool = False
    """Update as the original code does on 8 GPUs: clip_norm and AdamW's epsilon act on an eighth of
    the gradient, and the first update has rate 0."""
    freeze_layers: Count | None = None
    """Freeze the embeddings and this many of the lowest layers; 0 freezes the embeddings alone,
    None trains all."""
    lora_rank: Positive | None = None
    """Train only low-rank adapters of this rank beside the matrices of attention and feed-forward
    layers (LoRA, docs/training.md); they are merged into the exported model. Use a learning_rate
    ten to thirty times as high. None trains the weights themselves."""
    dropout: Annotated[float, Bounds(least=0, below=1)] = 0.1
    """Dropout rate of hidden states, and of attention weights if attention_dropout is None."""
    attention_dropout: Annotated[float, Bounds(least=0, below=1)] | None = None
    """Dropout rate of attention weights; with 0, GPUs use cuDNN's fused attention, which has no
    dropout. None: as `dropout`."""
    temperature: Rate | None = None
    """Divides the scores; None: 0.05 for unit vectors, else 1 as in the paper."""
    learn_temperature: bool = False
    """Train the logarithm of the temperature along with the towers, starting from `temperature`, at
    100 times their rate, or 5 times that of adapters."""
    symmetric: bool = False
    """Take half of the loss from the other direction: each positive passage against all questions
    of the batch."""
    matryoshka_widths: tuple[Positive, ...] = ()
    """Average the loss over whole vectors and vectors cut to each of these widths, so that cut
    vectors retrieve well too."""
    distillation: Literal["off", "kl", "margin_mse"] = "off"
    """Learn a teacher's scores of a question's own passages too (docs/training.md): its
    distribution over them (kl), or its margins (margin_mse)."""
    distillation_weight: Share = 0.5
    """Share of the distillation in the loss; the rest is the negative log likelihood."""
    mask_duplicates: bool = True
    """Mask passages of other questions with the text of one of this question's positives."""
    mask_answers: Literal["off", "string", "regex"] = "off"
    """Mask passages of other questions that contain an answer to this one, matched as in
    `evaluate.answer_match`. Each process then reads the whole batch."""
    chunk_size: Positive | None = None
    """Texts that a device encodes at once (GradCache): the memory of one chunk, two forward passes,
    the same result. None: all at once if that fits into memory, else the largest chunk that does. A
    size that does not divide a device's texts becomes their greatest common divisor."""
    pack_rows: Annotated[int, Bounds(least=1, most=4)] | None = None
    """Pack several texts into one row of this many times the longest allowed text: less padding,
    the same result. 1 has the cheapest attention, 2 the least padding. None pads every text. With
    packing each process reads the whole batch."""
    remat: bool = False
    """Compute each layer again in the backward pass instead of keeping its activations. Saves no
    memory on a CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision of the towers; weights, scores and loss are always float32."""
    gather: bool = True
    """Set every question against the passages of all devices; false: against those of its own
    device alone, to measure what gathering brings."""
    shard_optimizer: bool = False
    """Split weights and AdamW's moments over the devices, each of which updates its part: for
    towers whose state does not fit one device. The result is the same to rounding. Every update
    gathers the weights, matrices in `dtype`."""
    spmd: Literal["pmap", "shard_map"] | None = None
    """Mapping of the per-device step over devices; None: pmap, but shard_map on TPUs, where pmap
    copies the embedding tables in every update."""
    log_every_steps: Positive = 10
    """Steps from one line of metrics to the next."""
    validate_every_steps: Positive | None = None
    """Steps from one validation on the dev set to the next, each with a checkpoint; None: only
    after the last step."""
    best_metric: Literal["nll", "accuracy", "average_rank", "recall_at_1", "recall_at_20"] = "nll"
    """Validation metric that chooses the best checkpoint, which becomes the model. With a single
    validation that is the last."""
    patience: Positive | None = None
    """Stop after this many validations in a row without a better best_metric; None never stops
    early."""
    checkpoint_every_steps: Positive = 500
    """Steps from one checkpoint to the next; there is always one after the last step."""
    validation_negatives: Count = 30
    """Hard negatives per dev question in the average-rank pool, and as many other negatives (30 of
    each in DPR)."""
    profile_steps: Positive | None = None
    """Updates to trace, from the third on; the trace lies in the checkpoints' folder `profile`."""


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """The passage tower over the corpus, or the question tower over questions."""

    questions: str | None = None
    """Encode questions instead of the corpus: train, dev, test, or a file in any layout that
    data.test may have."""
    rows_per_shard: Positive = 65536
    """Texts per shard. Texts are sorted by length within a shard, and equal ones computed once. A
    killed run loses at most the shards being written."""
    batch_tokens: Positive | None = None
    """Tokens computed at once on a device, padding included; None: 1,024 on CPU, 32,768 on GPU and
    TPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision; auto: bfloat16, float32 on a CPU without avx512_bf16 or amx_bf16.
    Passages' vectors are stored as float16 either way."""


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """The search index over the embeddings; inner product."""

    kind: Literal["auto", "scann", "faiss", "exact"] = "auto"
    """Search engine; auto: exact below 5,000 passages, else scann, or faiss or exact if scann is
    not available."""
    dimensions: Positive | None = None
    """Width of the vectors in the index; questions are reduced in the same way. None: not
    reduced."""
    reduction: Literal["pca", "truncate"] = "pca"
    """Way to reduce the width: principal components of the corpus, or the first dimensions alone,
    for towers trained with train.matryoshka_widths."""
    target_recall: Share | None = None
    """Wanted recall@100 against exact search: settings left at None are tuned, and the fastest that
    reach it are kept. None: settings by rule."""
    queries: Literal["train", "dev", "test"] | None = None
    """Questions to measure recall with, encoded by `dpr encode --encode.questions`; None: corpus
    rows, which are easier to find."""
    leaves: Positive | None = None
    """Partitions (ScaNN tree, FAISS IVF); None: the square root of the number of passages."""
    leaves_to_search: Positive | None = None
    """Partitions searched per query; None: a quarter of the leaves, but at least 100."""
    reorder: Positive | None = None
    """Candidates rescored per query (ScaNN, FAISS with refinement), at least k; None: 400."""
    faiss: str = "auto"
    """Kind of FAISS index: flat, ivf_flat, ivf_pq, hnsw, or a factory string; auto: flat below
    5,000 passages, else ivf_flat."""
    ef_search: Positive | None = None
    """Candidates that FAISS HNSW keeps while searching, at least k; None: 200."""
    dimensions_per_block: Positive | None = None
    """Dimensions per code word of ScaNN's product quantization; None: 2."""
    soar_lambda: Annotated[float, Bounds(above=0)] | None = None
    """Weight by which ScaNN chooses a second partition for each vector (SOAR; 1.5 is usual); None:
    one partition, or with a target recall whichever is faster."""
    reorder_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """Precision of the vectors that ScaNN rescores with; bfloat16 takes half of the memory, int8 a
    quarter, and scores are rounded."""
    recall_queries: Positive = 200
    """Queries that certify recall@100 against exact search; none of them is tuned on."""


@dataclasses.dataclass(frozen=True)
class RetrieveConfig:
    """Batch retrieval: questions to a run."""

    kind: Literal["dense", "bm25", "hybrid"] | None = None
    """Kind of a new retriever; None: bm25 and hybrid by their names, any other dense."""
    parts: tuple[str, str] = ("bm25", "trained")
    """The two retrievers that a hybrid fuses, by name."""
    split: str | None = None
    """Prepared questions to answer: train, dev, test, or a set of data.test by name; None: dev and
    all test sets."""
    questions: str | None = None
    """A file of questions in any layout that data.test may have, TREC topics too."""
    top_k: Positive = 100
    """Passages per question."""
    fusion: Literal["linear", "rrf"] = "linear"
    """Fusion of a hybrid: BM25 + fusion_weight * similarity (linear, the DPR paper's), or
    reciprocal rank fusion."""
    fusion_weight: Annotated[float, Bounds(above=0)] | None = None
    """Weight of the similarity in a hybrid (the paper's lambda); None: the best one on the dev
    questions."""
    json_run: bool = True
    """Write the run in DPR's JSON form too, with the passages' texts."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Metrics of every run and the report."""

    cutoffs: tuple[Positive, ...] = (1, 5, 20, 100)
    """The k of top-k accuracy and recall."""
    answer_match: Literal["string", "regex", "substring"] = "string"
    """Test for an answer in a passage: DPR's token match, regular expressions (CuratedTREC), or
    substring, for scripts without spaces."""
    drop_self: bool = False
    """Drop the passage with the question's own id from its ranking, as BEIR does (ArguAna,
    Quora)."""
    baseline: str = "bm25"
    """Run with which every other run is compared."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of one work directory and of the retriever that is trained in it."""

    seed: Annotated[int, Bounds(least=0, most=(1 << 63) - 1)] = 13  # what JAX's keys take
    """Seed of data order, dropout and sampling."""
    compare: tuple[str, ...] = ("bm25", "untrained")
    """Retrievers that the pipeline compares with the trained one: bm25, untrained (the encoder as
    it came), and other encoders by hub id or folder, named by its last part or as NAME=SOURCE."""
    rounds: Positive = 1
    """Rounds of training in the pipeline; each after the first mines with the model of the round
    before and trains it further."""
    data: DataConfig = DataConfig()
    bm25: Bm25Config = Bm25Config()
    mine: MineConfig = MineConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    encode: EncodeConfig = EncodeConfig()
    index: IndexConfig = IndexConfig()
    retrieve: RetrieveConfig = RetrieveConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = dataclasses.field(default_factory=ServeConfig)
