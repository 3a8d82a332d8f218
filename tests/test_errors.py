"""Messages stay short, whatever foreign values they show."""

from prism_policy.errors import LONGEST_SENTENCE, PrismError


def test_a_message_that_is_too_long_keeps_its_beginning_and_what_to_do() -> None:
    error = PrismError(f"config.json: unknown task {'x' * 5000}; restore the file")
    assert len(str(error)) == LONGEST_SENTENCE
    assert str(error).startswith("config.json: unknown task xxx")
    assert str(error).endswith("xxx; restore the file")
    assert error.problem.startswith("config.json")


def test_a_message_of_the_usual_length_is_as_it_was_written() -> None:
    assert str(PrismError("x" * LONGEST_SENTENCE)) == "x" * LONGEST_SENTENCE
