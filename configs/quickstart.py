"""The quickstart: a small open encoder learns the questions of one domain, on a laptop's CPU.

Data:      data/quickstart/, a cut of MedQuAD (1,500 training, 200 dev, 400 test questions; 3,300
           passages).
Command:   dpr pipeline configs/quickstart.py --workdir runs/quickstart
Hardware:  two CPU cores, 4 GB of memory (3.0 GB used).
Time:      3.5 minutes, 368 s of processor time, most of it training (AMD EPYC, jax 0.10.2).
Expected:  gold passage in the top 1/5/20, % of the 400 test questions: BM25 42.8/87.8/98.8, the
           encoder as it came 73.8/95.5/100.0, trained 93.8/99.8/100.0, hybrid 95.2/99.8/100.0
           (the last digits may differ between processors).
"""

from dpr_jax.config import (
    Bm25Config,
    Config,
    DataConfig,
    EncodeConfig,
    IndexConfig,
    MineConfig,
    ModelConfig,
    RetrieveConfig,
    TrainConfig,
)

config = Config(
    data=DataConfig(
        passages="data/quickstart/passages.tsv.gz",
        train="data/quickstart/train.json.gz",
        dev="data/quickstart/dev.json.gz",
        test="data/quickstart/test.queries.tsv",
        test_qrels="data/quickstart/test.qrels",
    ),
    bm25=Bm25Config(k1=1.2, b=0.75),
    mine=MineConfig(depth=8, window=50),
    model=ModelConfig(
        init="packaged:all-MiniLM-L6-v2",
        pooling="mean",
        normalize=True,
        max_question_tokens=32,
        max_passage_tokens=96,
    ),
    train=TrainConfig(
        batch_size=24,
        chunk_size=12,  # GradCache: 1.5 GB less memory for one more forward pass
        hard_negatives=1,
        total_steps=32,
        learning_rate=3e-5,
        warmup=4 / 32,
        temperature=0.05,
        log_every_steps=1,
        checkpoint_every_steps=8,
        validation_negatives=2,
    ),
    encode=EncodeConfig(rows_per_shard=1024),
    index=IndexConfig(kind="scann"),
    retrieve=RetrieveConfig(json_run=False),  # DPR's JSON has every passage's text: 230 MB here
)
