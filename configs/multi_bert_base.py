r"""The paper's multi-dataset encoder: Natural Questions, TriviaQA, WebQuestions and CuratedTREC.

Data:      the files of nq_bert_base.py, trivia_bert_base.py, webq_bert_base.py, trec_bert_base.py.
Command:   dpr pipeline configs/multi_bert_base.py --workdir runs/multi_bert_base
           and in parts as in nq_bert_base.py; docs/launch.md has machines and prices.
Hardware:  as nq_bert_base.py.
Time:      not measured by us; 41,778 updates against the 18,400 of Natural Questions.
Expected:  top-20/top-100 answer accuracy in the paper: NQ 79.4/86.0, TriviaQA 78.8/84.7,
           WebQuestions 75.0/82.9. Not yet run by us.

Each batch is from one set; the two small sets come four times as often as their size says. SQuAD is
left out, as in the paper: its questions say little without their paragraph. Validation is on NQ's
development questions. CuratedTREC is not among the test sets, since its answers are regular
expressions and `evaluate.answer_match` is one for all.
"""

import dataclasses

from nq_bert_base import config as nq
from trec_bert_base import config as trec
from trivia_bert_base import config as trivia
from webq_bert_base import config as webq

config = dataclasses.replace(
    nq,
    data=dataclasses.replace(
        nq.data,
        train=(nq.data.train, trivia.data.train, webq.data.train, trec.data.train),
        test=(
            f"nq={nq.data.test}",
            f"trivia={trivia.data.test}",
            f"webq={webq.data.test}",
        ),
    ),
    train=dataclasses.replace(
        nq.train,
        upsampling=(1, 1, 4, 4),
        total_steps=41778,
        warmup=1237 / 41778,
        validate_every_steps=5222,
    ),
)
