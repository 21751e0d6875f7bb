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
    or what `dpr split` wrote; None: the passages that the questions carry with their texts."""
    train: str | tuple[str, ...] = ()
    """Training questions: a file, such as DPR JSON, a BEIR folder, or `tfds:NAME#SPLIT`; or
    several, of which each batch is from one."""
    dev: str | None = None
    """Development questions: as for data.train."""
    test: str | tuple[str, ...] = ()
    """Test questions: as for data.train; also questions alone, such as DPR's question/answers file.
    Several make one table each, named by file or as NAME=PATH."""
    train_qrels: str | None = None
    """Qrels of the training questions (TREC, BEIR, or MS MARCO triples of ids); None: gold passages
    are those in data.train."""
    dev_qrels: str | None = None
    """Qrels of the development questions; None: gold passages are those in data.dev."""
    test_qrels: str | None = None
    """Qrels of the test questions; None: gold passages are those in data.test, if any."""
    on_missing: Literal["error", "drop"] | None = None
    """Refuse gold passages that are not in the corpus, or leave them out and count them; None: drop
    those of qrels, refuse those that a question's own row names."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Roles of columns whose names do not say them: {"question": "q", "positive": "3"}, by name or
    by number; `test.question` is for one file, `ignore` leaves columns out (docs/data.md)."""
    positive_from: Annotated[float, Bounds()] | None = None
    """Labelled pairs: a passage whose label or score is at least so much is a positive; None: whole
    labels of 1 or more."""
    split_words: Positive | None = None
    """data.passages holds documents: split them into disjoint passages of so many words (100 in the
    paper)."""
    split_tokens: Positive | None = None
    """data.passages holds documents: split them into windows of so many tokens of the encoder's
    tokenizer."""
    split_stride_tokens: Positive | None = None
    """Tokens from the begin of one window to that of the next; None: data.split_tokens, windows
    that do not overlap."""
    max_train_questions: Positive | None = None
    """Use only so many training questions of each file, drawn by `seed` from all over it (a file
    may be sorted)."""

    @property
    def train_files(self) -> tuple[str, ...]:
        """`train` as a tuple, empty where it names nothing."""
        return (self.train,) if isinstance(self.train, str) else self.train

    @property
    def test_files(self) -> tuple[str, ...]:
        """`test` as a tuple, empty where it names nothing."""
        return (self.test,) if isinstance(self.test, str) else self.test


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
    """Stop words and stemming; pairs of characters for scripts without spaces; "none" takes words
    as they are. None: as found from the corpus."""


# (question, its candidates as (title, text)) -> for each, whether it may be a hard negative
Filter = Callable[[str, list[tuple[str, str]]], Sequence[bool]]
# (question, its gold and hard negative passages as (title, text)) -> a score of each, higher for
# better
Teacher = Callable[[str, list[tuple[str, str]]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class MineConfig:
    """Hard negatives: passages that rank high, and are neither gold, nor nearly gold, nor contain
    an answer.
    """

    enabled: bool | None = None
    """Mine hard negatives; None: where the training questions bring none of their own."""
    sources: tuple[str, ...] = ("bm25",)
    """Retrievers whose rankings are mined, by name; of several, each one's best in turn. bm25 is
    always there; a dense one must be encoded and indexed first (the pipeline does that for those in
    `compare`)."""
    depth: Positive = 8
    """Hard negatives to keep per question."""
    skip: Count = 0
    """Pass over so many top passages of a source, gold or not: among the very best are answers
    nobody marked."""
    window: Positive = 100
    """Top passages of a source to look through, `skip` included."""
    sample: bool = False
    """Draw from the whole window, all passages alike; otherwise the best are taken."""
    relative_margin: Annotated[float, Bounds(least=0)] | None = None
    """Keep only what scores at least this share of its score below the first gold passage: 0.05
    asks for at most 95 %."""
    filter: Filter | None = None
    """A function of the config file that says what may be a hard negative, such as a
    cross-encoder's judgement (docs/mining.md)."""
    teacher: Teacher | None = None
    """A function of the config file that scores the gold and mined passages of training questions,
    such as a cross-encoder, for `train.distillation`."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The two towers; None means as the model folder says of itself."""

    init: str = "packaged:all-MiniLM-L6-v2"
    """Where both towers start: a Hugging Face hub id, a folder, `retriever:NAME`, or
    `packaged:all-MiniLM-L6-v2` (needs no network)."""
    shared_towers: bool = False
    """Use one set of weights for questions and passages."""
    pooling: (
        Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"] | None
    ) = None
    """The vector: the last layer's [CLS] state (DPR), the mean over real tokens, or another of
    sentence-transformers' poolings."""
    normalize: bool | None = None
    """Scale vectors to unit length."""
    max_question_tokens: Annotated[int, Bounds(least=4)] | None = None
    """Questions are cut at so many tokens, [CLS] and [SEP] included; None: where the folder says,
    else at most 64."""
    max_passage_tokens: Annotated[int, Bounds(least=8)] | None = None
    """Passages (title and text) are cut at so many tokens, special tokens included; None: where the
    folder says, else at most 256."""
    question_prompt: str | None = None
    """Text before every question, such as "query: ", counted in its tokens; None: as the folder
    says, or as the encoder is known to want it (docs/encoders.md)."""
    passage_prompt: str | None = None
    """Likewise before every passage."""


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
    """Passes over the training questions, in place of total_steps; None for both: 10, or 1,000
    updates where that is less."""
    learning_rate: Rate = 2e-5
    """Peak learning rate of AdamW."""
    warmup: Annotated[float, Bounds(least=0, below=1)] = 0.1
    """Share of the updates in which the rate rises linearly to its peak, before it decays to
    zero."""
    weight_decay: Annotated[float, Bounds(least=0)] = 0.0
    """Decoupled weight decay, not applied to biases and LayerNorm."""
    clip_norm: Rate | None = 2.0
    """Clip the gradient to this global norm; None does not clip."""
    dpr_parity: bool = False
    """As the original code on its 8 GPUs: clip_norm and AdamW's epsilon act on an eighth of the
    gradient, and the first update has rate 0."""
    freeze_layers: Count | None = None
    """Keep the embeddings and the lowest so many layers as they came; 0 keeps the embeddings alone,
    None trains all."""
    lora_rank: Positive | None = None
    """Train low-rank adapters of this rank beside the matrices of attention and feed-forward
    layers, and nothing else of the towers (LoRA, docs/training.md); the model gets them merged.
    Wants a learning_rate ten to thirty times as high. None trains the weights themselves."""
    dropout: Annotated[float, Bounds(least=0, below=1)] = 0.1
    """Dropout rate of hidden states, and of attention weights where the next is None."""
    attention_dropout: Annotated[float, Bounds(least=0, below=1)] | None = None
    """Dropout rate of attention weights; with 0 GPUs take cuDNN's fused attention, which has no
    dropout. None: as `dropout`."""
    temperature: Rate | None = None
    """Scores are divided by it; None: 0.05 for unit vectors, else 1, the paper's."""
    learn_temperature: bool = False
    """Train the logarithm of the temperature along with the towers, starting from `temperature`, at
    100 times their rate, or 5 times that of adapters."""
    symmetric: bool = False
    """Half of the loss is that of positive passages which look for their question among all
    questions of the batch."""
    matryoshka_widths: tuple[Positive, ...] = ()
    """The loss is the mean over vectors cut to each of these widths, and whole, so that cut vectors
    retrieve well too."""
    distillation: Literal["off", "kl", "margin_mse"] = "off"
    """Learn besides what a teacher scored a question's own passages (docs/training.md): its
    distribution over them, or its margins."""
    distillation_weight: Share = 0.5
    """Share of the distillation in the loss; the rest is the negative log likelihood."""
    mask_duplicates: bool = True
    """Mask passages of other questions whose text is that of a positive of this one."""
    mask_answers: Literal["off", "string", "regex"] = "off"
    """Mask passages of other questions that contain an answer to this one, found as
    `evaluate.answer_match` says; each process then reads the whole batch."""
    chunk_size: Positive | None = None
    """Texts that a device encodes at once (GradCache): the memory of one chunk, two forward passes,
    the same result. None: all at once where that fits into memory, else the largest chunk that
    does. Where it does not divide a device's texts, their greatest common divisor."""
    pack_rows: Annotated[int, Bounds(least=1, most=4)] | None = None
    """Put several texts into one row, so many times as long as the longest text may be: less
    padding, the same result; 1 for the cheapest attention, 2 for the least padding. None pads every
    text. Several processes then each read the whole batch."""
    remat: bool = False
    """Compute each layer again in the backward pass instead of keeping its activations; on a CPU
    XLA saves no memory by it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision of the towers; weights, scores and loss are always float32."""
    gather: bool = True
    """Set every question against the passages of all devices; false: against those of its own
    device alone, to see what gathering is worth."""
    shard_optimizer: bool = False
    """Split weights and AdamW's moments over the devices, each of which updates its part: for
    towers whose state does not fit one device. The result is the same to rounding; weights travel
    to all devices in every update, matrices in `dtype`."""
    spmd: Literal["pmap", "shard_map"] | None = None
    """Mapping of the per-device step over devices; None: pmap, on TPUs shard_map, where pmap lays
    the embedding tables out anew in every update."""
    log_every_steps: Positive = 10
    """Write a line of metrics every so many steps."""
    validate_every_steps: Positive | None = None
    """Validate on the dev set every so many steps, and save a checkpoint; None: only after the last
    step."""
    best_metric: Literal["nll", "accuracy", "average_rank", "recall_at_1", "recall_at_20"] = "nll"
    """Validation metric that chooses the best checkpoint, which becomes the model; without a
    validation in between that is the last."""
    patience: Positive | None = None
    """Stop after so many validations in a row without a better best_metric; None never stops
    early."""
    checkpoint_every_steps: Positive = 500
    """Save a checkpoint every so many steps (and always after the last)."""
    validation_negatives: Count = 30
    """Hard negatives, and as many other negatives, per dev question in the average-rank pool (30 of
    each in DPR)."""
    profile_steps: Positive | None = None
    """Write a trace of so many updates, from the third after a start on, to the profile folder of
    the checkpoints."""


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """The passage tower over the corpus, or the question tower over questions."""

    questions: str | None = None
    """Encode questions instead of the corpus: train, dev, test, or a file in any layout that
    data.test may have."""
    rows_per_shard: Positive = 65536
    """Texts per shard; they are sorted by length within one, equal ones are computed once, and a
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
    """auto: exact below 5,000 passages, else scann, else (where it cannot be had) faiss, else
    exact."""
    dimensions: Positive | None = None
    """Make vectors so many numbers wide before the index is built of them, and questions before
    they are asked; None: their whole width."""
    reduction: Literal["pca", "truncate"] = "pca"
    """How: by principal components of the corpus, or the first numbers alone, for towers trained
    with train.matryoshka_widths."""
    target_recall: Share | None = None
    """Recall@100 against exact search that is wanted: settings below that are None are measured,
    and the fastest that reach it are kept; None: by rule."""
    queries: Literal["train", "dev", "test"] | None = None
    """Questions to measure with, encoded by `dpr encode --encode.questions`; None: corpus rows,
    which are easier to find."""
    leaves: Positive | None = None
    """Partitions (ScaNN tree, FAISS IVF); None: the square root of the number of passages."""
    leaves_to_search: Positive | None = None
    """Partitions searched per query; None: a quarter of the leaves, at least 100 (all, where there
    are fewer)."""
    reorder: Positive | None = None
    """ScaNN, FAISS with refinement: candidates rescored exactly per query (at least the k asked
    for); None: 400."""
    faiss: str = "auto"
    """FAISS: flat, ivf_flat, ivf_pq, hnsw, or a factory string; auto: flat below 5,000 passages,
    else ivf_flat."""
    ef_search: Positive | None = None
    """FAISS HNSW: candidates kept while searching (at least the k asked for); None: 200."""
    dimensions_per_block: Positive | None = None
    """ScaNN: dimensions per code word of the product quantization; None: 2."""
    soar_lambda: Annotated[float, Bounds(above=0)] | None = None
    """ScaNN: each vector also lies in a second partition, chosen with this weight (SOAR; 1.5 is
    usual); None: in one alone, or with a target recall whichever is faster."""
    reorder_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """ScaNN: what rescoring reads; the smaller ones take a half and a quarter of the memory, and
    scores are rounded."""
    recall_queries: Positive = 200
    """Queries for the recall@100 against exact search that index.json states; none of them is tuned
    on."""


@dataclasses.dataclass(frozen=True)
class RetrieveConfig:
    """Batch retrieval: questions to a run."""

    kind: Literal["dense", "bm25", "hybrid"] | None = None
    """Kind of a new retriever; None: bm25 and hybrid by their names, any other dense."""
    parts: tuple[str, str] = ("bm25", "trained")
    """hybrid: the two retrievers that it fuses, by name."""
    split: str | None = None
    """Prepared questions to answer: train, dev, test, or a set of data.test by name; None: dev and
    all test sets."""
    questions: str | None = None
    """A file of questions in any layout that data.test may have, TREC topics too."""
    top_k: Positive = 100
    """Passages per question."""
    fusion: Literal["linear", "rrf"] = "linear"
    """hybrid: BM25 + fusion_weight * similarity (the DPR paper), or reciprocal rank fusion."""
    fusion_weight: Annotated[float, Bounds(above=0)] | None = None
    """Weight of the similarity (the paper's lambda); None: the best one on the dev questions."""
    json_run: bool = True
    """Write the run in DPR's JSON form too, with the passages' texts."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Metrics of every run and the report."""

    cutoffs: tuple[Positive, ...] = (1, 5, 20, 100)
    """The k of top-k accuracy and recall."""
    answer_match: Literal["string", "regex", "substring"] = "string"
    """Test for an answer in a passage: DPR's token match, regular expressions (CuratedTREC), or any
    run of characters, for scripts without spaces."""
    drop_self: bool = False
    """Leave the passage whose id is the question's own out of each ranking, as BEIR does (ArguAna,
    Quora)."""
    baseline: str = "bm25"
    """Every run is compared with this one."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of one work directory and of the retriever that is trained in it."""

    seed: Annotated[int, Bounds(least=0, most=(1 << 63) - 1)] = 13  # what JAX's keys take
    """Seed of data order, dropout and sampling."""
    compare: tuple[str, ...] = ("bm25", "untrained")
    """Retrievers that the pipeline sets beside the trained one: bm25, untrained (the encoder as it
    came), and any other encoder by hub id or folder, named by its last part or as NAME=SOURCE."""
    rounds: Positive = 1
    """Rounds of training in the pipeline; each after the first mines with the model of the one
    before, and trains that on."""
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
