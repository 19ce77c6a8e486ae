from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.records import read
from distill.errors import UserError

ROWS = [{"prompt": f"p{i} \u2028 ü🙂", "completion": "a\nb"} for i in range(5)]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path, rows=ROWS):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def write_datasets(path, rows=ROWS):
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", write_jsonl), ("a.parquet", write_parquet), ("saved", write_datasets)]
)
def test_every_format_gives_the_same_rows(tmp_path, name, write):
    path = write(tmp_path / name)
    records = read(str(path), "data.path")
    assert [records[i] for i in range(len(records))] == ROWS
    assert list(records) == ROWS
    assert records.place(4) == f"{path}, {'line' if name.endswith('jsonl') else 'row'} 5"


def test_a_folder_is_read_in_order_of_names(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", ROWS[:2])
    write_parquet(tmp_path / "a.parquet", ROWS[2:])
    (tmp_path / "notes.txt").write_text("not data")
    records = read(str(tmp_path), "data.path")
    assert list(records) == [records[i] for i in range(5)] == ROWS[2:] + ROWS[:2]
    assert [records.place(i) for i in (0, 2, 3, 4)] == [
        f"{tmp_path}/a.parquet, row 1", f"{tmp_path}/a.parquet, row 3",
        f"{tmp_path}/b.jsonl, line 1", f"{tmp_path}/b.jsonl, line 2",
    ]  # fmt: skip


def test_an_empty_file_in_a_folder(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    write_jsonl(tmp_path / "b.jsonl", ROWS[:1])
    (tmp_path / "c.jsonl").write_text("")
    records = read(str(tmp_path), "data.path")
    assert [records[0]] == list(records) == ROWS[:1]
    assert records.place(0) == f"{tmp_path}/b.jsonl, line 1"


def test_crlf_blank_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a\\r\\n"}\r\n\r\n  \n{"prompt": "b"}')
    records = read(str(path), "data.path")
    assert list(records) == [{"prompt": "a\r\n"}, {"prompt": "b"}]
    assert records.place(1) == f"{path}, line 4"


@pytest.mark.parametrize(
    "line",
    [b'{"prompt": "a', b"{'prompt': 1}", b"[1]", b'"text"', b"3", b"null", b'{"prompt": "\xff"}', b"[" * 100_000],
)
def test_names_a_broken_line(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n\n' + line + b'\n{"prompt": "b"}\n')
    with pytest.raises(UserError) as error:
        read(str(path), "data.eval_path")
    message = str(error.value)
    assert message.startswith("`data.eval_path` must be lines of one JSON object each, in UTF-8, but is")
    assert f"{path}, line 3: " in message
    assert "\n" not in message


@pytest.mark.parametrize("content", ["", "\n \r\n"])
def test_refuses_an_empty_file(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="data with at least one row"):
        read(str(path), "data.path")


def test_refuses_an_empty_table(tmp_path):
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="data with at least one row"):
        read(str(tmp_path / "a.parquet"), "data.path")


@pytest.mark.parametrize("name", ["no.jsonl", "no.parquet", "no", "no.csv"])
def test_refuses_a_missing_path(tmp_path, name):
    with pytest.raises(
        UserError, match=r"^`data\.path` must be an existing \.jsonl or \.parquet file, .* but is '/.*'\.$"
    ):
        read(str(tmp_path / name), "data.path")


def test_refuses_what_it_cannot_read(tmp_path):
    (tmp_path / "a.csv").write_text("prompt\nhi\n")
    with pytest.raises(UserError, match="must be an existing"):
        read(str(tmp_path / "a.csv"), "data.path")
    with pytest.raises(UserError, match="must be an existing"):
        read(str(tmp_path), "data.path")
    with pytest.raises(UserError, match="but is None"):
        read(None, "data.path")


def test_refuses_truncated_files(tmp_path):
    parquet = write_parquet(tmp_path / "a.parquet")
    parquet.write_bytes(parquet.read_bytes()[:-20])
    saved = write_datasets(tmp_path / "saved")
    arrow = next(saved.glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    for path in (parquet, saved):
        with pytest.raises(UserError) as error:
            read(str(path), "data.path")
        assert f"{path}: " in str(error.value)
        assert "\n" not in str(error.value)


def test_refuses_several_splits_and_names_one(tmp_path):
    one = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"one split of the saved dataset, such as .*saved/train"):
        read(str(tmp_path / "saved"), "data.path")
    assert list(read(str(tmp_path / "saved" / "train"), "data.path")) == ROWS
