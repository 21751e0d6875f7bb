"""Makes the collection with its SCANN index, and fills it; needs pymilvus and pyarrow alone.

With --bucket-folder Milvus imports the Parquet files from its own bucket, where they must be
already; it needs pymilvus[bulk_writer]. Without it they are sent row by row, which serves small
corpora and Milvus Lite, which has no SCANN and gets an exact index. Run again, it goes on.
"""

import argparse
import json
import pathlib

import pyarrow.parquet
from pymilvus import DataType, MilvusClient

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--uri", required=True, help="http://HOST:19530, or a file of Milvus Lite")
parser.add_argument("--token", default="")
parser.add_argument("--table", default="passages")
parser.add_argument("--bucket-folder")
args = parser.parse_args()
here = pathlib.Path(__file__).parent
facts = json.loads((here / "milvus.json").read_text())

client = MilvusClient(args.uri, token=args.token)
if not client.has_collection(args.table):
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=facts["id_bytes"])
    schema.add_field("position", DataType.INT64)
    schema.add_field("title", DataType.VARCHAR, max_length=facts["text_bytes"])
    schema.add_field("text", DataType.VARCHAR, max_length=facts["text_bytes"])
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=facts["width"])
    index = client.prepare_index_params()
    exact = {"index_type": "FLAT", "metric_type": facts["index"]["metric_type"]}
    index.add_index("embedding", **(facts["index"] if "://" in args.uri else exact))
    client.create_collection(args.table, schema=schema, index_params=index)

if args.bucket_folder:
    from pymilvus.bulk_writer import bulk_import

    files = [[f"{args.bucket_folder}/{name}"] for name in facts["files"]]
    for at in range(0, len(files), 1024):  # as many as Milvus takes at once
        job = {"collection_name": args.table, "files": files[at : at + 1024]}
        print(bulk_import(url=args.uri, api_key=args.token, **job).json())
else:
    for name in facts["files"]:
        with pyarrow.parquet.ParquetFile(here / name) as file:
            for rows in file.iter_batches(1000):
                client.upsert(args.table, rows.to_pylist())
        print(name)
