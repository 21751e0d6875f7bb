"""Natural questions against 40 thousand passages, with answers: what the packaged encoder does
where it has little left to learn.

Data:      data/nq_natural/ in DPR's layout (passages.tsv, train.json, dev.json, test.qa.csv,
           test.qrels); not in this repository.
Command:   dpr pipeline configs/nq_natural.py --workdir runs/nq_natural
Hardware:  two CPU cores, 6 GB of memory.
Time:      estimated from measured rates (docs/log.md): an hour, nearly all of it encoding 40
           thousand passages twice.
Expected:  answer found in the top 1/5/20/100, % of 2,990 test questions: BM25 63.1/83.0/91.8/96.8
           (measured); the packaged encoder untrained 83.1/96.2/98.9/99.7 (measured with other
           tools). It was trained on such questions: training shows no gain here.
"""

from dpr_jax.config import (
    Config,
    DataConfig,
    EncodeConfig,
    ModelConfig,
    TrainConfig,
)

config = Config(
    data=DataConfig(
        passages="data/nq_natural/passages.tsv",
        train="data/nq_natural/train.json",
        dev="data/nq_natural/dev.json",
        test="data/nq_natural/test.qa.csv",
        test_qrels="data/nq_natural/test.qrels",
    ),
    model=ModelConfig(
        init="packaged:all-MiniLM-L6-v2",
        pooling="mean",
        normalize=True,
        max_question_tokens=32,
        max_passage_tokens=160,
    ),
    train=TrainConfig(
        batch_size=32,
        pack_rows=2,  # texts share rows: 93 of 100 tokens computed are real, 75 without
        hard_negatives=1,
        total_steps=40,
        learning_rate=1e-5,
        warmup=4 / 40,
        temperature=0.05,
        log_every_steps=1,
        checkpoint_every_steps=10,
        validation_negatives=2,
    ),
    encode=EncodeConfig(rows_per_shard=4096),
)
