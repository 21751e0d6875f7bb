r"""Natural questions with a small encoder and a small corpus: the config of the studies of batch
size and of rounds in docs/results.md.

Data:      a cut of data/nq_natural/ in DPR's layout, which is not in this repository:
           python benchmarks/cut_corpus.py data/nq_natural --passages 6000 --train-questions 1600 \
             --test-questions 1500 --out runs/nq_natural_6k
Model:     the lowest layer of the packaged encoder:
           python benchmarks/cut_encoder.py --layers 1 --out runs/minilm-1-layer
Command:   dpr pipeline configs/study_nq_natural.py --workdir runs/study_nq_natural --rounds 2
Hardware:  two CPU cores, 4 GB of memory.
Time:      403 s of processor time for both rounds, on a shared machine 14 minutes by the clock (AMD
           EPYC with AVX2, Python 3.11, jax 0.10.2, 2026-11-25).
Expected:  answer found in the top 1/5/20/100, % of 1,500 test questions: BM25 75.8/90.1/96.0/98.3,
           the encoder as it came 27.5/53.5/73.2/89.3, trained 54.5/73.9/87.3/95.8, hybrid
           79.9/94.3/98.0/99.4, round 2 55.3/77.3/89.2/96.8. docs/results.md says what they mean.

Otherwise as configs/study_squad.py, with passages cut at 64 tokens to save time.
"""

import dataclasses
from pathlib import Path

from dpr_jax import config_file
from dpr_jax.config import DataConfig

squad = config_file.load(Path(__file__).with_name("study_squad.py"))
config = dataclasses.replace(
    squad,
    data=DataConfig(
        passages="runs/nq_natural_6k/passages.tsv",
        train="runs/nq_natural_6k/train.json",
        dev="runs/nq_natural_6k/dev.json",
        test="runs/nq_natural_6k/test.qa.csv",
        test_qrels="runs/nq_natural_6k/test.qrels",
    ),
    model=dataclasses.replace(squad.model, init="runs/minilm-1-layer", max_passage_tokens=64),
    train=dataclasses.replace(squad.train, total_steps=25, warmup=2 / 25),
)
