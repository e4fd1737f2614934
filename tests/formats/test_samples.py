"""A sample submission is read as any program writes it, else it is named."""

from types import SimpleNamespace

import pytest

from cellkit.errors import UserError
from cellkit.formats.samples import sample_files, sample_ids
from cellkit.sources.source_tables import asked_ids

WRITTEN = {
    "plain": "id,predicted\nb,1 1\nb,3 1\na,\n",
    "other case": "ID,Predicted\nb,\na,\n",
    "semicolons": "id;predicted\nb;\na;\n",
    "tabs, other case": "\ufeffPREDICTED\tId\r\n\tb\r\n\ta\r\n",
    "quoted": '"id";"predicted"\n"b";""\n"a";""\n',
    "without a second field": "id,predicted\nb\na\n",
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_sample_is_read_as_programs_write_it(how, tmp_path):
    path = tmp_path / "sample_submission.csv"
    path.write_text(WRITTEN[how], encoding="utf-8", newline="")
    assert sample_ids(path, "sartorius") == sample_ids(path) == ["b", "a"]
    assert asked_ids(tmp_path, [SimpleNamespace(own_id="a")]) == ["b", "a"]
    with pytest.raises(UserError, match="has no column 'ImageId', or no row; its first line says: "):
        sample_ids(path, "dsb2018")


UNREAD = {
    "image,predicted\na,\n": "has no column 'ImageId' or 'id', or no row; its first line says: image, predicted",
    "id,predicted\n": "has no column 'ImageId' or 'id', or no row; its first line says: id, predicted",
    "": "its first line says: nothing",
    "id,pr\xe9dit\na,\n": "is no CSV in UTF-8",
}


@pytest.mark.parametrize("text", UNREAD)
def test_a_sample_without_ids_is_not_followed_and_that_is_said(text, tmp_path, caplog):
    (tmp_path / "sample_submission.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=UNREAD[text]):
        sample_ids(tmp_path / "sample_submission.csv")
    assert asked_ids(tmp_path, [SimpleNamespace(own_id="a")]) == []
    assert UNREAD[text] in caplog.text and "it is not followed" in caplog.text
    (tmp_path / "stage2_sample_submission.csv").write_text(WRITTEN["tabs, other case"])
    assert asked_ids(tmp_path, [SimpleNamespace(own_id="a")]) == ["b", "a"]
    assert UNREAD[text] in caplog.text and "it is not followed" in caplog.text


def test_a_sample_is_known_by_any_spelling_of_its_name(tmp_path, caplog):
    names = ["Sample_Submission.CSV", "sampleSubmission.csv", "sample_submission.tsv", "stage1_sample_submission.csv"]
    for name in (*names, "submission.csv", "train.csv", "sample_submission.md"):
        (tmp_path / name).write_text("id,predicted\na,\n")
    assert [path.name for path in sample_files(tmp_path)] == sorted(names)
    for name in names:
        (tmp_path / name).unlink()
    (tmp_path / "sample_submission.csv.zip").write_bytes(b"PK")
    assert (
        asked_ids(tmp_path, []) == []
        and "sample_submission.csv.zip is packed" in caplog.text
        and "unpack it" in caplog.text
    )


def test_a_column_of_another_name_is_never_read_as_ids(tmp_path):
    for text in ("\nImageId,EncodedPixels\na,1 1\n", "Image\na,1 1\n"):
        (tmp_path / "sample_submission.csv").write_text(text)
        with pytest.raises(UserError, match="has no column"):
            sample_ids(tmp_path / "sample_submission.csv")
