import pytest

from tpssl_hf.commands import doctor


def test_the_benchmark_is_a_table_below_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--benchmark", "true", "--backbone", "test_resnet", "--image_size", "32"]) == 0
    report, _, table = capsys.readouterr().out.partition("\n\n")
    assert "torch" in report
    title, header, *rows = table.splitlines()
    assert title.startswith("test_resnet at 32 px") and len(rows) in (2, 4, 6)
    assert sum(row.endswith("chosen") for row in rows) == 1
