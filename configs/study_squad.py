"""SQuAD with a small encoder: the config of the studies in docs/results.md, which override single
settings of it.

Data:      data/squad/ in DPR's layout (passages.tsv, train.json, dev.json, test.qa.csv,
           test.qrels); not in this repository.
Model:     the two lowest layers of the packaged encoder, which as they are retrieve badly and learn
           fast:
           python benchmarks/cut_encoder.py --layers 2 --out runs/minilm-2-layers
Command:   dpr pipeline configs/study_squad.py --workdir runs/study_squad
Hardware:  two CPU cores, 5 GB of memory (a training on SQuAD held 3.7).
Time:      in docs/results.md, for each study.
Expected:  in docs/results.md, for each study.

The figures in docs/results.md were trained on the file's first 3,200 questions, which are of ten
articles; they are drawn from all over it now.
"""

from dpr_jax.config import (
    Bm25Config,
    Config,
    DataConfig,
    IndexConfig,
    MineConfig,
    ModelConfig,
    TrainConfig,
)

config = Config(
    data=DataConfig(
        passages="data/squad/passages.tsv",
        train="data/squad/train.json",
        dev="data/squad/dev.json",
        test="data/squad/test.qa.csv",
        test_qrels="data/squad/test.qrels",
        max_train_questions=3200,
    ),
    bm25=Bm25Config(k1=0.9, b=0.4),
    mine=MineConfig(depth=8, window=50),
    model=ModelConfig(
        init="runs/minilm-2-layers",
        pooling="mean",
        normalize=True,
        max_question_tokens=32,
        max_passage_tokens=128,
    ),
    train=TrainConfig(
        batch_size=64,
        hard_negatives=1,
        total_steps=50,
        learning_rate=3e-4,
        warmup=5 / 50,
        temperature=0.05,
        dropout=0.0,
        freeze_layers=0,
        log_every_steps=1,
        checkpoint_every_steps=25,
        validation_negatives=1,
    ),
    index=IndexConfig(kind="exact"),
)
