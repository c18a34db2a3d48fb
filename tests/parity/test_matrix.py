"""MATRIX.md says what the cases say, and every line of what is asked for has a case."""
import matrix


def test_the_matrix_is_up_to_date():
    assert (matrix.HERE / "MATRIX.md").read_text() == matrix.text(), "run: python3 tests/parity/matrix.py --write"


def test_what_stands_beside_the_cases_exists():
    for _, path, name, _ in matrix.OTHERS:
        assert f"def {name}(" in (matrix.HERE.parent.parent / path).read_text(), f"{path}: {name}"
