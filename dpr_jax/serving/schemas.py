"""The requests and answers of the HTTP interface, for validation and for OpenAPI."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

Name = Annotated[StrictStr, Field(max_length=200)]
QUESTION = "what are the symptoms of Weaver syndrome?"
PASSAGE = {
    "id": "1431-3",
    "title": "Weaver syndrome",
    "text": "Tall stature, a large head and unusual facial features are its signs.",
    "score": 0.8236,
}


class Closed(BaseModel):
    """A request whose unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


Text = Annotated[StrictStr, Field(max_length=1000)]
Number = StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)]


class FieldBounds(Closed):
    """Bounds of a field: numbers, or texts, which are compared letter by letter."""

    gte: Text | Number | None = Field(None, description="Least value.")
    gt: Text | Number | None = None
    lte: Text | Number | None = Field(None, description="Greatest value.")
    lt: Text | Number | None = None


Value = StrictBool | Number | Text
Condition = Value | Annotated[list[Value], Field(min_length=1, max_length=1000)] | FieldBounds


class SearchRequest(Closed):
    """One question, or several."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "oneOf": [{"required": ["question"]}, {"required": ["questions"]}],
            "examples": [
                {"question": QUESTION, "k": 3},
                {"questions": [QUESTION, "who is at risk of gout?"], "k": 5, "retriever": "bm25"},
                {"question": QUESTION, "filter": {}, "offset": 10},
            ],
        },
    )

    question: StrictStr | None = Field(None, description="One question.")
    questions: list[StrictStr] | None = Field(None, description="Or several.")
    k: StrictInt = Field(10, ge=1, description="Passages per question.")
    offset: StrictInt = Field(0, ge=0, description="Number of best passages to skip.")
    retriever: Name | None = Field(None, description="Name; the default if left out.")
    filter: Annotated[dict[Name, Condition], Field(max_length=32)] | None = Field(
        None,
        description='Only passages whose fields fit, as {"year": {"gte": 2020}, "source": ["a",'
        ' "b"]}; /v1/info names the fields. A number also fits a text that reads as it.',
    )
    marks: StrictBool = Field(
        False, description="Say where title and text have words of the question, as BM25 counts."
    )

    @model_validator(mode="after")
    def _one_form(self) -> "SearchRequest":
        if (self.question is None) == (self.questions is None):
            raise ValueError("give either question, a text, or questions, a list of texts")
        return self

    @property
    def conditions(self) -> dict[str, Any] | None:
        """The filter as `Fields.mask_N` takes it; None where there is none."""
        return self.model_dump(exclude_none=True)["filter"] if self.filter else None

    @property
    def texts(self) -> list[str]:
        """The questions, one or more."""
        return [self.question] if self.question is not None else self.questions or []


class PassageBody(BaseModel):
    """A passage."""

    id: str
    title: str
    text: str
    fields: dict[str, Value] | None = Field(
        None, description="The other columns of the passage; not there where it has none."
    )


class HitBody(PassageBody):
    """A passage that was found; scores of one retriever compare with each other alone."""

    score: float
    title_marks: list[tuple[int, int]] | None = Field(
        None, description="[begin, end) in characters, where marks were asked for."
    )
    text_marks: list[tuple[int, int]] | None = None


class ResultBody(BaseModel):
    """The passages of one question, best first."""

    question: str
    passages: list[HitBody]
    complete: bool | None = Field(
        None,
        description="With a filter: false where fewer than k of the passages that were looked at"
        " fit, and not all were looked at.",
    )


class SearchResponse(BaseModel):
    """The passages of every question, in the order of the questions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "retriever": "trained",
                    "table": 1,
                    "k": 3,
                    "offset": 0,
                    "results": [{"question": QUESTION, "passages": [PASSAGE]}],
                    "ms": {
                        "queue": 0.1,
                        "encode": 4.2,
                        "search": 0.6,
                        "passages": 0.2,
                        "total": 5.3,
                    },
                }
            ]
        }
    )

    retriever: str
    table: int = Field(description="Number of the table that answered; a reload counts it up.")
    k: int
    offset: int
    results: list[ResultBody]
    ms: dict[str, float] = Field(description="Milliseconds by stage.")


class RetrieveRequest(Closed):
    """The request of Search-R1 and verl."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"queries": [QUESTION], "topk": 3, "return_scores": True}]},
    )

    queries: list[StrictStr]
    topk: StrictInt | None = Field(None, ge=1, description="Passages per query; null is 3.")
    return_scores: StrictBool = False


class RetrieveResponse(BaseModel):
    """Lists of {"document", "score"}, or with return_scores false of documents."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "result": [
                        [
                            {
                                "document": {
                                    "id": PASSAGE["id"],
                                    "contents": f"{PASSAGE['title']}\n{PASSAGE['text']}",
                                },
                                "score": PASSAGE["score"],
                            }
                        ]
                    ]
                }
            ]
        }
    )

    result: list[list[dict[str, Any]]]


class EmbeddingsRequest(BaseModel):
    """The request of OpenAI's clients; the vectors are those of questions."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"examples": [{"input": [QUESTION], "model": "trained"}]},
    )

    input: StrictStr | list[StrictStr]
    model: Name = Field(description="A dense retriever, by name.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = Field(None, description="None, or the width of the vectors.")


class EmbeddingsResponse(BaseModel):
    """The answer that OpenAI's clients read."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    model: str
    usage: dict[str, int]


class ReloadRequest(Closed):
    """The retrievers to serve from now on."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}]})

    retrievers: list[Name] | None = Field(
        None, description="By name; null keeps those that are served.", max_length=50
    )


class ErrorFacts(BaseModel):
    """The description of an error."""

    message: str
    type: str
    code: int


class ErrorResponse(BaseModel):
    """The form of every error."""

    error: ErrorFacts


class PyseriniError(BaseModel):
    """The form of errors on Pyserini's routes."""

    error: str | ErrorFacts
