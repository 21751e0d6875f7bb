r"""The paper's setting on Natural Questions: two BERT-base towers, [CLS], dot product (Karpukhin et
al., 2020, section 5).

Data:      DPR's own files in data/nq/ (its `data.wikipedia_split.psgs_w100`,
           `data.retriever.nq-train`, `nq-dev`, `data.retriever.qas.nq-test`); the hard negatives in
           them are BM25's.
Command:   dpr pipeline configs/nq_bert_base.py --workdir runs/nq_bert_base
           With a TPU pod slice only for what needs one (W on storage that all workers see):
             dpr pipeline configs/nq_bert_base.py --workdir W --until mine
             launch/tpu_vm.sh --name NAME --zone ZONE -- \
               dpr pipeline --workdir W --from train --until encode
             dpr pipeline --workdir W --from index
Hardware:  8 TPU chips or GPUs of 16 GB or more; the index needs a host with 160 GB of memory.
Time:      not measured by us; the paper took about a day of training on 8 GPUs of 32 GB, and 8.8
           hours of encoding.
Expected:  top-20/top-100 answer accuracy on the 3,610 test questions: 78.4/85.4 in the paper (BM25
           59.1/73.7). Not yet run by us.

40 epochs of 58,880 rows in batches of 128 are 18,400 updates. `dpr_parity` takes the eighth of the
gradient that the original has on its 8 GPUs, so that its clip of 2.0 means the same, and its first
update at rate 0. The best checkpoint is that of the lowest average rank.
"""

from dpr_jax.config import (
    Config,
    DataConfig,
    IndexConfig,
    MineConfig,
    ModelConfig,
    TrainConfig,
)

config = Config(
    compare=("bm25",),  # BERT as it comes retrieves nothing, and encoding takes hours
    data=DataConfig(
        passages="data/nq/psgs_w100.tsv.gz",
        train="data/nq/biencoder-nq-train.json.gz",
        dev="data/nq/biencoder-nq-dev.json.gz",
        test="data/nq/nq-test.qa.csv",
    ),
    mine=MineConfig(enabled=False),
    model=ModelConfig(
        init="google-bert/bert-base-uncased",
        pooling="cls",
        normalize=False,
        max_question_tokens=64,
        max_passage_tokens=256,
    ),
    train=TrainConfig(
        batch_size=128,
        hard_negatives=1,
        total_steps=18400,
        learning_rate=2e-5,
        warmup=1237 / 18400,
        clip_norm=2.0,
        dpr_parity=True,
        best_metric="average_rank",
        dropout=0.1,
        temperature=1.0,
        dtype="bfloat16",
        validate_every_steps=2300,
        checkpoint_every_steps=460,
    ),
    index=IndexConfig(kind="scann"),
)
