r"""The paper's setting on TriviaQA: configs/nq_bert_base.py with other questions.

Data:      DPR's own files in data/trivia/ (its `data.retriever.trivia-train`,
           `trivia-dev`, `data.retriever.qas.trivia-test`), and its Wikipedia in
           data/nq/; the hard negatives in them are BM25's.
Command:   dpr pipeline configs/trivia_bert_base.py --workdir runs/trivia_bert_base
           and in parts as in nq_bert_base.py; docs/launch.md has machines and prices.
Hardware:  as nq_bert_base.py.
Time:      not measured by us; 18,879 updates against the 18,400 of Natural Questions.
Expected:  top-20/top-100 answer accuracy on the 11,313 test questions: 79.4/85.0 in the paper
           (BM25 66.9/76.7; 76.4/83.2 where it was run again). Not yet run by us.

The same as Natural Questions but for its files and the number of updates: 40 epochs of 60,413
rows in batches of 128.
"""

import dataclasses

from nq_bert_base import config as nq

config = dataclasses.replace(
    nq,
    data=dataclasses.replace(
        nq.data,
        train="data/trivia/biencoder-trivia-train.json.gz",
        dev="data/trivia/biencoder-trivia-dev.json.gz",
        test="data/trivia/trivia-test.qa.csv.gz",
    ),
    train=dataclasses.replace(
        nq.train,
        total_steps=18879,
        warmup=1237 / 18879,
        validate_every_steps=2359,
        checkpoint_every_steps=460,
    ),
)
